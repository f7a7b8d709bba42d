"""Converts colours from their ICC profile to sRGB, the only colour space used inside.

An image without a profile is taken as sRGB. If its profile is sRGB, under whatever name, nothing is
changed: a profile counts as sRGB if it moves no colour of a grid by more than two levels of 255.
With any other profile (Display P3, Adobe RGB, CMYK, grey) the image is converted; colours outside
sRGB become the nearest ones inside (relative colorimetric, with black point compensation). A
profile that is damaged, for another kind of image, or too large is ignored: the image is kept, but
its colours may be off. In both cases the note returned with the image says so.

Only ICC profiles are read. Other colour information (PNG's gAMA and cICP, the code points of AVIF,
EXIF's ColorSpace) is ignored.
"""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms, features

MAX_PROFILE_BYTES = 8 << 20
"""Larger profiles are ignored. Those of printing presses reach some 4 MB."""

_SAME_COLOUR_LEVELS = 2  # of 255; sRGB profiles differ by no more, through rounding
_PROFILE_SPACES = {"L": ("GRAY", "RGB "), "RGB": ("RGB ",), "CMYK": ("CMYK",)}
_DEVICES = ("scnr", "mntr", "prtr", "spac")
_MAX_NAME_CHARS = 60
_log = logging.getLogger(__name__)


class _UnusableProfileError(Exception):
    """Why a profile is ignored."""


@dataclass(frozen=True)
class ToSrgb:
    """Converts images of one mode and profile to sRGB in mode RGB.

    `note` is "" if nothing has to be done, else one line for people, with text from the profile
    (printable, at most 60 characters).
    """

    convert: Callable[[Image.Image], Image.Image]
    note: str = ""

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.convert(image)


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """Converts an image of mode L, RGB or CMYK from its ICC profile to sRGB in mode RGB.

    Returns the image and the note of `ToSrgb`. Never raises for a profile, whatever its bytes are;
    raises MemoryError if memory runs out.
    """
    convert = to_srgb_with(profile, image.mode)
    return convert(image), convert.note


def to_srgb_with(profile: bytes | None, mode: str) -> ToSrgb:
    """The conversion of images of mode L, RGB or CMYK; errors as `to_srgb`."""
    if not profile:
        return ToSrgb(_as_it_is)
    try:
        return _conversion(profile, mode)
    except _UnusableProfileError as error:
        reason = str(error)
    except MemoryError:
        raise  # an image's colours must not depend on what else the machine does
    except Exception as error:  # noqa: BLE001 - a hostile profile costs its colours only
        reason = f"it is damaged: {_printable(str(error)) or type(error).__name__}"
    return ToSrgb(_as_it_is, f"colour profile ignored ({reason})")


def _as_it_is(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _conversion(profile: bytes, mode: str) -> ToSrgb:
    if len(profile) > MAX_PROFILE_BYTES:
        raise _UnusableProfileError(f"it has {len(profile)} bytes")
    if not features.check_module("littlecms2"):
        _warn_of_missing_conversion()
        raise _UnusableProfileError("Pillow was built without LittleCMS, which ImageCms needs")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space
    if source.profile.device_class not in _DEVICES or space not in _PROFILE_SPACES[mode]:
        raise _UnusableProfileError(
            f"it is of kind {_printable(source.profile.device_class)} for "
            f"{_printable(space)}, the image is {mode}"
        )
    taken = "RGB" if space == "RGB " else mode
    transform = ImageCms.buildTransform(
        source,
        ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile())),
        taken,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        _flags(taken),
    )
    name = _printable(source.profile.profile_description or "") or f"an unnamed {space.strip()}"
    note = f"colours converted from {name} to sRGB"
    before = _probe(taken)
    after = _apply(transform, before)
    if taken == "L" and not _is_same(before, after):
        tables = [channel.tobytes() for channel in after.split()]
        return ToSrgb(lambda grey: Image.merge("RGB", [grey.point(t) for t in tables]), note)
    if taken != "CMYK" and _is_same(before, after):
        return ToSrgb(_as_it_is)
    return ToSrgb(lambda colours: _apply(transform, colours.convert(taken)), note)


def _flags(mode: str) -> ImageCms.Flags:
    """How a transform is computed.

    LittleCMS replaces a grey curve by a table that is up to 10 levels off in the shadows of linear
    light. The exact curve is slow, but for grey only 256 values have to be computed.
    """
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    return flags | ImageCms.Flags.NOOPTIMIZE if mode == "L" else flags


def _probe(mode: str) -> Image.Image:
    """All greys from 0 to 255, a grid of RGB with 9 levels a channel, or one mix of inks."""
    if mode == "CMYK":
        return Image.new("CMYK", (1, 1))
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(*[levels] * 3), -1).reshape(1, -1, 3))


def _is_same(before: Image.Image, after: Image.Image) -> bool:
    moved = np.asarray(after, int) - np.asarray(before.convert("RGB"), int)
    return bool(np.abs(moved).max() <= _SAME_COLOUR_LEVELS)


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None only for a transform in place
    return converted


def _printable(text: str) -> str:
    """Text from a file as one short, printable line."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)[
        :_MAX_NAME_CHARS
    ]


@cache
def _warn_of_missing_conversion() -> None:
    """Logged once per process; the note of every image reports it too."""
    _log.warning(
        "this Pillow was built without LittleCMS: colour profiles are ignored, and images in "
        "other colour spaces than sRGB get wrong colours; install a build that has it"
    )


@cache
def srgb_profile() -> bytes:
    """A small ICC profile of sRGB (version 4, curve of IEC 61966-2-1), always the same bytes."""
    curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    adaptation = (1.04788208, 0.02291870, -0.05021667, 0.02958679, 0.99047852, -0.01707458)
    trc = b"para" + struct.pack(">IHH", 0, 3, 0) + _fixed(*curve)
    tags = {
        b"desc": _text("sRGB"),
        b"cprt": _text("CC0"),
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),  # the white of the connection space, D50
        b"chad": b"sf32" + bytes(4) + _fixed(*adaptation, -0.00924683, 0.01507568, 0.75167847),
        b"rXYZ": _xyz(0.43606567, 0.22248840, 0.01391602),
        b"gXYZ": _xyz(0.38514709, 0.71687317, 0.09707642),
        b"bXYZ": _xyz(0.14306641, 0.06060791, 0.71409607),
        b"rTRC": trc,
        b"gTRC": trc,
        b"bTRC": trc,
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    placed: dict[bytes, int] = {}  # the three curves share one place
    for name, content in tags.items():
        if content not in placed:
            placed[content] = start + len(body)
            body += content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", placed[content], len(content))
    header = struct.pack(">I4xI4s4s4s", start + len(body), 0x04400000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += _fixed(0.9642, 1.0, 0.8249) + bytes(48)
    return header + table + body


def _fixed(*numbers: float) -> bytes:
    """s15Fixed16 numbers."""
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def _xyz(*numbers: float) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*numbers)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">III2s2sII", 0, 1, 12, b"en", b"US", len(encoded), 28) + encoded

"""What a JPEG 2000 file says about its samples and colours; Pillow decodes it but reads neither.

Source: ISO 15444-1, A.5.1 (SIZ) and I.5.3 (the boxes of the JP2 header).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from PIL import Image

from fpe_core.errors import ImageDecodeError
from fpe_core.image.levels import Scale

_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"
_BOXES = b"\0\0\0\x0cjP  "
_ENUMERATED, _PROFILES = 1, (2, 3)
_CONVERTED = {0: "bi-level", 12: "CMYK", 15: "bi-level", 16: "sRGB", 17: "grey", 18: "sYCC"}
"""Enumerated colour spaces that Pillow takes into account, or that need no conversion."""


def scale_of(image: Image.Image, data: bytes) -> Scale:
    """How the samples of an opened image are meant.

    Raises ImageDecodeError: a depth that Pillow decodes wrongly. It rounds colours of more than
    eight bits up without a limit, so that white becomes black (seen in 13.0.0).
    """
    bits = _bits(data)
    if len(set(bits)) > 1 or not bits:
        raise ImageDecodeError(f"its samples have different depths ({bits} bits)")
    (depth,) = set(bits)
    if (depth > 8 and image.mode != "I;16") or depth > 16:
        raise ImageDecodeError(
            f"it is a JPEG 2000 of {len(bits)} x {depth} bits, which Pillow decodes wrongly: only "
            "grey may have more than 8 bits, and at most 16; save it as PNG or TIFF"
        )
    if depth < 8 and image.mode not in ("L", "RGB"):
        raise ImageDecodeError(
            f"it is a JPEG 2000 of {len(bits)} x {depth} bits with a palette or alpha, which is "
            "not read; save it as PNG"
        )
    white = 2**depth - 1
    return Scale(white << ((16 if depth > 8 else 8) - depth), white)


def colours_of(data: bytes) -> tuple[bytes | None, str]:
    """The ICC profile, and a note if the file names a colour space that is not converted."""
    if not data.startswith(_BOXES):
        return None, ""
    for kind, header in _boxes(data):
        if kind != b"jp2h":
            continue
        for inner, box in _boxes(header):
            if inner == b"colr" and box:
                return _colours(box)
    return None, ""


def _colours(box: bytes) -> tuple[bytes | None, str]:
    if box[0] in _PROFILES:
        return box[3:], ""
    space = struct.unpack(">I", box[3:7])[0] if box[0] == _ENUMERATED and len(box) >= 7 else None
    if space in _CONVERTED:
        return None, ""
    said = f"enumerated space {space}" if space is not None else f"method {box[0]}"
    return None, f"colours not converted (JPEG 2000 names them by {said}; taken as sRGB)"


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        start = 8
        if length == 1 and place + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, place + 8)
            start = 16
        if length == 0:
            length = len(data) - place
        if length < start:
            return
        if kind != b"jp2c":
            yield kind, data[place + start : place + length]
        place += length


def _bits(data: bytes) -> tuple[int, ...]:
    """Bits of a sample, channel by channel."""
    place = data.find(_START_OF_CODESTREAM) + 4
    (channels,) = struct.unpack_from(">H", data, place + 36)
    return tuple((data[place + 38 + 3 * n] & 0x7F) + 1 for n in range(channels))

"""What a TIFF says about itself: kinds that are refused, how its samples are meant, and its kind in
words.

Only the first page is read. In a camera raw it is a thumbnail, and the photo is elsewhere and not
developed; such files are refused, as is any first page that calls itself a reduced copy.

Source of the tags: TIFF revision 6.0; TIFF/EP (ISO 12234-2); DNG 1.7 (50706, 32803, 34892).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from PIL import TiffImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from fpe_core.errors import ImageDecodeError
from fpe_core.image.levels import Scale, scale_of_mode

_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _MAKE, _SUB_IFDS, _DNG_VERSION = 254, 255, 271, 330, 50706
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _FORMAT = 258, 259, 262, 277, 284, 339
_SENSOR = (32803, 34892)  # photometric interpretations of a raw: CFA, LinearRaw
_WHITE_IS_ZERO, _RGB, _SEPARATED = 0, 2, 5
_FAX = (2, 3, 4)  # compressions
_MOST_DIRECTORIES = 16

_COMPRESSIONS = {
    1: "none",
    2: "CCITT RLE",
    3: "CCITT group 3",
    4: "CCITT group 4",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34676: "SGI LogL",
    34677: "SGI LogLuv",
    34887: "LERC",
    34892: "lossy JPEG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    48124: "Jetraw",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
    34713: "Nikon NEF",
    65535: "Pentax PEF",
}
_PHOTOMETRICS = {
    0: "WhiteIsZero",
    1: "BlackIsZero",
    2: "RGB",
    3: "palette",
    4: "transparency mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIE Lab",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "CFA",
    32844: "CIE LogL",
    32845: "CIE LogLuv",
    34892: "LinearRaw",
}
_FORMATS = {
    1: "unsigned",
    2: "signed",
    3: "float",
    4: "untyped",
    5: "complex whole",
    6: "complex float",
}
_AS_LIBTIFF_GIVES_IT = {
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
}
"""libtiff returns samples in the machine's order of bytes. Pillow 13.0 takes these raw modes for
the file's order, and so returns noise for compressed files of the other one."""


def first_directory(data: bytes) -> ImageFileDirectory_v2 | None:
    """The tags of the first page; None if the bytes are not a TIFF or cannot be parsed."""
    is_tiff = data.startswith(tuple(TiffImagePlugin.PREFIXES))
    return _directory(data, None) if is_tiff else None


def kind_of(data: bytes) -> str:
    """What kind of TIFF it is, for messages; "" if the bytes are not a TIFF."""
    tags = first_directory(data)
    if tags is None or not len(tags):
        return ""
    bits = sorted(set(_numbers(tags.get(_BITS, 1))))
    formats = sorted(set(_numbers(tags.get(_FORMAT, 1))))
    parts = (
        f"{_number(tags.get(_SAMPLES), 1)} x {' and '.join(map(str, bits))} bits",
        " and ".join(_named(_FORMATS, value) for value in formats),
        _named(_PHOTOMETRICS, _number(tags.get(_PHOTOMETRIC), -1)),
        f"compression {_named(_COMPRESSIONS, _number(tags.get(_COMPRESSION), 1))}",
        "planes apart" if _number(tags.get(_PLANAR), 1) == 2 else "",
    )
    return f"a TIFF of {', '.join(part for part in parts if part)}"


def refuse_raw_or_reduced(data: bytes, what: str) -> None:
    """Raises ImageDecodeError if the first page of a TIFF is not the image that the file is for."""
    tags = first_directory(data)
    if tags is None:
        return
    if name := _name_of_raw(tags, data):
        raise ImageDecodeError(
            f"the {what} is a camera raw ({name}), which is not read: only its thumbnail could be; "
            "develop it, and save it as JPEG, PNG or TIFF"
        )
    kind = _number(tags.get(_NEW_SUBFILE_TYPE), 0)
    if kind & 1 or _number(tags.get(_SUBFILE_TYPE), 1) == 2:
        raise ImageDecodeError(
            f"the first page of the TIFF is a reduced copy of another {what} (tag NewSubfileType), "
            "and only first pages are read; save the full one as a file of its own"
        )
    if kind & 4 and what != "mask":
        raise ImageDecodeError(
            f"the first page of the TIFF is a transparency mask (tag NewSubfileType), not an {what}"
        )


def prepare(image: TiffImageFile) -> Scale:
    """How the samples of an opened TIFF are meant; call it before the pixels are decoded.

    Raises ImageDecodeError: a kind that Pillow would decode to something else.
    """
    tags = image.tag_v2
    bits = max(_numbers(tags.get(_BITS, 1)))
    photometric = tags.get(_PHOTOMETRIC)
    compression = _number(tags.get(_COMPRESSION), 1)
    if photometric is None and compression not in (*_FAX, 6):
        raise ImageDecodeError("the TIFF does not say what its samples mean (tag 262 is missing)")
    if _number(tags.get(_PLANAR), 1) == 2 and _number(tags.get(_SAMPLES), 1) > 1:
        is_right = photometric in (_RGB, _SEPARATED) and (bits == 8 or compression != 1)
        if not is_right:
            raise ImageDecodeError(
                "its planes are stored apart (PlanarConfiguration 2), which is read for RGB and "
                "CMYK of 8 bits only, or of 16 bits if compressed; save it with the samples of a "
                "pixel together"
            )
    tile = image.tile[0] if image.tile else None
    if tile is not None and tile.codec_name == "libtiff" and isinstance(tile.args, tuple):
        native = _AS_LIBTIFF_GIVES_IT.get(tile.args[0], tile.args[0])
        image.tile = [tile._replace(args=(native, *tile.args[1:]))]
    return _scale(image, bits, photometric)


def _scale(image: TiffImageFile, bits: int, photometric: Any) -> Scale:
    kind = max(_numbers(image.tag_v2.get(_FORMAT, 1)))
    if kind == 2:
        return Scale(signed_bits=bits)
    if kind == 3:
        return Scale(1, 1, is_inverted=photometric == _WHITE_IS_ZERO)
    white = 2**bits - 1
    if image.mode.startswith("I"):
        # Pillow inverts up to eight bits itself, and holds 32 bits in a signed type.
        is_inverted = photometric == _WHITE_IS_ZERO
        return Scale(white, white, is_inverted, unsigned_bits=32 if bits == 32 else 0)
    return Scale(stored_white=white) if bits > 1 else scale_of_mode(image.mode)


def _name_of_raw(tags: ImageFileDirectory_v2, data: bytes) -> str:
    if _DNG_VERSION in tags:
        return "DNG"
    if data[8:10] == b"CR":
        return "CR2"
    if data[8:12] in (b"IIII", b"MMMM"):
        return "IIQ"
    if any(_number(page.get(_PHOTOMETRIC), -1) in _SENSOR for page in _directories(tags, data)):
        return " ".join(str(tags.get(_MAKE, "")).split())[:40] or "of an unnamed camera"
    return ""


def _directories(tags: ImageFileDirectory_v2, data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """The first page, its sub-directories and the pages after it, as far as they can be parsed."""
    yield tags
    places = [*_numbers(tags.get(_SUB_IFDS, ())), tags.next]
    for _ in range(_MOST_DIRECTORIES):
        if not places:
            return
        place = places.pop(0)
        if not 0 < place < len(data):
            continue
        page = _directory(data, place)
        if page is not None:
            yield page
            if not places:
                places.append(page.next)


def _directory(data: bytes, place: int | None) -> ImageFileDirectory_v2 | None:
    """The tags at a place, or the first ones; None if they cannot be parsed."""
    try:
        directory = ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        stream = io.BytesIO(data)
        stream.seek(directory.next if place is None else place)
        directory.load(stream)
    except Exception:  # noqa: BLE001 - parsers raise nearly anything on hostile bytes
        return None
    return directory


def _numbers(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(number for number in values if isinstance(number, int))


def _number(value: Any, default: int) -> int:
    return next(iter(_numbers(value)), default)


def _named(names: dict[int, str], value: int) -> str:
    return names.get(value, f"number {value}" if value >= 0 else "an unstated meaning")

"""Small pictures in every format that is read, and bombs: few bytes that claim to be huge."""

from __future__ import annotations

import io
import struct
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from tests.builders.colour_profiles import DISPLAY_P3, rgb_profile, srgb_curve
from tests.builders.mutations import with_right_checksums

_WIDTH, _HEIGHT = 24, 18


def picture(mode: str = "RGB", number: int = 0) -> Image.Image:
    y, x = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    bands = [(x * 9 + number * 31) % 256, (y * 13) % 256, (x * y) % 256]
    image = Image.fromarray(np.stack(bands, -1).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L"), np.float32) / 255)
    return image.convert(mode)


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    sink = io.BytesIO()
    picture(mode).save(sink, kind, **options)
    return sink.getvalue()


def seeds() -> dict[str, bytes]:
    """Sound pictures by name: what mutations start from."""
    frames = [picture(number=number) for number in (1, 2)]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description " * 20
    wide = rgb_profile(DISPLAY_P3, srgb_curve(), "P3")
    return {
        "jpeg": encoded("JPEG", exif=exif, icc_profile=wide),
        "jpeg progressive": encoded("JPEG", progressive=True),
        "jpeg grey": encoded("JPEG", "L"),
        "jpeg cmyk": encoded("JPEG", "CMYK"),
        "png": encoded("PNG", exif=exif),
        "png palette": encoded("PNG", "P", transparency=3),
        "png alpha": encoded("PNG", "RGBA"),
        "png 16 bit": encoded("PNG", "I;16"),
        "png 1 bit": encoded("PNG", "1"),
        "png animated": encoded("PNG", save_all=True, append_images=frames),
        "webp": encoded("WEBP", exif=exif),
        "webp lossless alpha": encoded("WEBP", "RGBA", lossless=True),
        "webp animated": encoded("WEBP", save_all=True, append_images=frames),
        "gif": encoded("GIF", "P"),
        "gif animated": encoded("GIF", save_all=True, append_images=frames, comment=b"c" * 300),
        "tiff": encoded("TIFF"),
        "tiff lzw": encoded("TIFF", compression="tiff_lzw"),
        "tiff deflate alpha": encoded("TIFF", "RGBA", compression="tiff_adobe_deflate"),
        "tiff jpeg": encoded("TIFF", compression="jpeg"),
        "tiff float": encoded("TIFF", "F"),
        "tiff pages": encoded("TIFF", save_all=True, append_images=frames),
        "tiff fax": encoded("TIFF", "1", compression="group4"),
        "bmp": encoded("BMP"),
        "bmp palette": encoded("BMP", "P"),
        "avif": encoded("AVIF", quality=30, speed=10),
        "jpeg 2000": encoded("JPEG2000"),
        "ppm": encoded("PPM"),
        "pgm": encoded("PPM", "L"),
        "qoi": encoded("QOI")
        if "QOI" in Image.SAVE
        else b"qoif" + struct.pack(">IIBB", 24, 18, 3, 0),
    }


def bombs() -> dict[str, bytes]:
    """Pictures by name of which the least would take hundreds of megabytes."""
    return {
        "png declared": _png(65535, 65535, encoded("PNG")),
        "png that keeps its word": encoded_plain("PNG", 16_000),
        "png with a long text": _png_text(b"zTXt", b"Comment\0\0"),
        "png with a long profile": _png_text(b"iCCP", b"icc\0\0"),
        "png with a second picture": _png(24, 18, encoded("PNG")) + _png(60_000, 60_000, b""),
        "gif declared": b"GIF89a\xff\xff\xff\xff" + encoded("GIF", "P")[10:],
        "gif whose frame is larger": _gif_frame(9_000),
        "bmp declared": _at(encoded("BMP"), 18, struct.pack("<ii", 60_000, 60_000)),
        "bmp upside down": _at(encoded("BMP"), 18, struct.pack("<ii", 60_000, -60_000)),
        "tiff declared": _tiff(60_000, 60_000, 24),
        "tiff in one strip": _tiff(60_000, 60_000, 60_000),
        "tiff with long tags": _tiff(24, 18, 18, count=0x0FFFFFFF),
        "jpeg declared": _jpeg(65_000, 65_000),
        "webp declared": _webp(16_383),
        "ppm declared": b"P6 60000 60000 255\n" + bytes(1000),
        "ppm of a long header": b"P6 " + b"9" * 1_000_000,
        "qoi declared": b"qoif" + struct.pack(">IIBB", 60_000, 60_000, 3, 0) + bytes(1000),
    }


def encoded_plain(kind: str, side_px: int) -> bytes:
    sink = io.BytesIO()
    Image.new("1", (side_px, side_px)).save(sink, kind)
    return sink.getvalue()


def _at(data: bytes, start: int, value: bytes) -> bytes:
    return data[:start] + value + data[start + len(value) :]


def _png(width: int, height: int, rest: bytes) -> bytes:
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0"
    return with_right_checksums(head + bytes(4) + rest[33:])


@lru_cache
def _packed_zeros() -> bytes:
    """300 MB of them."""
    squeeze = zlib.compressobj(1)
    return b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(300)) + squeeze.flush()


def _png_text(kind: bytes, start: bytes) -> bytes:
    body = start + _packed_zeros()
    whole = encoded("PNG")
    chunk = struct.pack(">I", len(body)) + kind + body + bytes(4)
    return with_right_checksums(whole[:33] + chunk + whole[33:])


def _gif_frame(side_px: int) -> bytes:
    data = encoded("GIF", "P")
    frame = data.index(b",\0\0\0\0")
    return _at(data, frame + 5, struct.pack("<HH", side_px, side_px))


def _tiff(width: int, height: int, rows_per_strip: int, count: int = 1) -> bytes:
    """A little-endian TIFF of one grey strip, its entries as told."""
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (270, 2, count, 8),
        (273, 4, count, 8),
        (278, 4, 1, rows_per_strip),
        (279, 4, 1, width * height % 2**32),
    ]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4 + 500)


def _jpeg(width: int, height: int) -> bytes:
    data = encoded("JPEG")
    frame = data.index(b"\xff\xc0")
    return _at(data, frame + 5, struct.pack(">HH", height, width))


def _webp(side_px: int) -> bytes:
    """A lossy picture whose frame header says side by side pixels."""
    data = encoded("WEBP")
    frame = data.index(b"\x9d\x01\x2a")
    return _at(data, frame + 3, struct.pack("<HH", side_px, side_px))

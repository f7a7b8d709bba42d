"""Pictures as other programs write them, made byte by byte: TIFFs, PNGs of any depth, JP2s."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image

JPEG_OF_12_BITS = base64.b64decode(  # 8 x 8, grey; imagecodecs 2026.3.6, jpeg8_encode
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsL"
    "EBYQERMUFRUVDA8XGBYUGBIUFRT/wQALDAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAADP/EABQQAQAAAAAAAAAA"
    "AAAAAAAAAAD/2gAIAQEAAD8AKKP/2Q=="
)
JPEG_OF_INKS = {  # 8 x 8, ink 40, 200, 120, 0 of 255, inverted as by Adobe; imagecodecs 2026.3.6
    "CMYK": base64.b64decode(
        "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwACAQEBAQECAQEBAgICAgIEAwICAgIFBAQDBAYFBgYGBQYGBgcJCAYHCQcGBggL"
        "CAkKCgoKCgYICwwLCgwJCgoK/8AAFAgACAAIBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgMEBQYH"
        "CAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQcicRQygZGhCCNCscEVUtHwJDNicoIJChYXGBka"
        "JSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SVlpeYmZqio6Slpqeo"
        "qaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4EQwBNAFkASwAAPwD9XK/N"
        "utyv38r/2Q=="
    ),
    "YCCK": base64.b64decode(
        "/9j/7gAOQWRvYmUAZAAAAAAC/9sAQwACAQEBAQECAQEBAgICAgIEAwICAgIFBAQDBAYFBgYGBQYGBgcJCAYHCQcGBggL"
        "CAkKCgoKCgYICwwLCgwJCgoK/9sAQwECAgICAgIFAwMFCgcGBwoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoK"
        "CgoKCgoKCgoKCgoKCgoKCgoK/8AAFAgACAAIBAEiAAIRAQMRAQQiAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgMEBQYH"
        "CAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQcicRQygZGhCCNCscEVUtHwJDNicoIJChYXGBka"
        "JSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SVlpeYmZqio6Slpqeo"
        "qaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/EAB8BAAMBAQEBAQEBAQEAAAAA"
        "AAABAgMEBQYHCAkKC//EALURAAIBAgQEAwQHBQQEAAECdwABAgMRBAUhMQYSQVEHYXETIjKBCBRCkaGxwQkjM1LwFWJy"
        "0QoWJDThJfEXGBkaJicoKSo1Njc4OTpDREVGR0hJSlNUVVZXWFlaY2RlZmdoaWpzdHV2d3h5eoKDhIWGh4iJipKTlJWW"
        "l5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uLj5OXm5+jp6vLz9PX29/j5+v/aAA4EAQACEQMR"
        "BAAAPwDvKKKK+LP82z9/KKKK/9k="
    ),
}
JP2_OF_12_BITS = base64.b64decode(  # 4 x 4, grey, 0 to 4095 in steps of 273; imagecodecs 2026.3.6
    "AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAABAAAAAQAAQsHAAAAAAAPY29s"
    "cgEAAAAAABEAAACdanAyY/9P/1EAKQAAAAAABAAAAAQAAAAAAAAAAAAAAAQAAAAEAAAAAAAAAAAAAQsBAf9SAAwAAAAB"
    "AAAEBAAB/1wABEBg/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAAKwAB/5Pf4GgS"
    "GjluoYLW+iSx5X39kRPYAGqGhb5YzdD/f//Z"
)
JP2_OF_4_BITS = base64.b64decode(  # 4 x 4, grey, 0 to 15; imagecodecs 2026.3.6
    "AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAABAAAAAQAAQMHAAAAAAAPY29s"
    "cgEAAAAAABEAAACManAyY/9P/1EAKQAAAAAABAAAAAQAAAAAAAAAAAAAAAQAAAAEAAAAAAAAAAAAAQMBAf9SAAwAAAAB"
    "AAAEBAAB/1wABEAg/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAAGgAB/5PfIJAS"
    "D4SWQuG6bfH/2Q=="
)
JP2_OF_3_X_12_BITS = base64.b64decode(  # 4 x 4, RGB, the upper half white; imagecodecs 2026.3.6
    "AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAABAAAAAQAAwsHAAAAAAAPY29s"
    "cgEAAAAAABAAAACianAyY/9P/1EALwAAAAAABAAAAAQAAAAAAAAAAAAAAAQAAAAEAAAAAAAAAAAAAwsBAQsBAQsBAf9S"
    "AAwAAAABAQAEBAAB/1wABEBg/2QAJQABQ3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAAKgAB"
    "/5PP5FwTwgLtucgkT5mZmZmZoAvuTIJiUnOc54CA/9k="
)

Tag = tuple[int, int, int, int | bytes]
"""Number, type (3: SHORT, 4: LONG, or that of the bytes), count, value."""


def tiff(pages: list[list[Tag]], pixels: list[bytes], chained: int = 1) -> bytes:
    """A little-endian TIFF. Of `pages` the first `chained` are pages, the others sub-directories of
    the first (tag 330). The pixels of page n are `pixels[n]`, in one strip."""
    pages = [[tag for tag in page if tag[0] not in (273, 279, 330)] for page in pages]
    for page, data in zip(pages, pixels, strict=True):
        page += [(273, 4, 1, 0), (279, 4, 1, len(data))]
    subs = len(pages) - chained
    if subs:
        pages[0].append((330, 4, subs, bytes(4 * subs)))
    places, place = [], 8
    for page in pages:
        places.append(place)
        place += len(_directory(page, place, 0))
    starts = [place + sum(map(len, pixels[:n])) for n in range(len(pixels))]
    out = b"II*\0" + struct.pack("<I", 8)
    for n, page in enumerate(pages):
        filled: list[Tag] = []
        for tag in page:
            if tag[0] == 273:
                tag = (273, 4, 1, starts[n])
            elif tag[0] == 330:
                tag = (330, 4, subs, struct.pack(f"<{subs}I", *places[chained:]))
            filled.append(tag)
        following = places[n + 1] if n + 1 < chained else 0
        out += _directory(filled, places[n], following)
    return out + b"".join(pixels)


def _directory(tags: list[Tag], place: int, following: int) -> bytes:
    body, extra = struct.pack("<H", len(tags)), b""
    after = place + 2 + 12 * len(tags) + 4
    for number, kind, count, value in sorted(tags, key=lambda tag: tag[0]):
        if isinstance(value, int):
            field = struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value)
        elif len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field = struct.pack("<I", after + len(extra))
            extra += value + bytes(len(value) % 2)
        body += struct.pack("<HHI", number, kind, count) + field
    return body + struct.pack("<I", following) + extra


def page(size: tuple[int, int], bits: int = 8, photometric: int = 1, samples: int = 1) -> list[Tag]:
    """The tags of an uncompressed page in one strip."""
    width, height = size
    all_bits = struct.pack(f"<{samples}H", *[bits] * samples)
    return [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, all_bits), (259, 3, 1, 1)),
        *((262, 3, 1, photometric), (277, 3, 1, samples), (278, 4, 1, height)),
    ]


def camera_raw(*extra: Tag, photometric: int = 32803) -> bytes:
    """A thumbnail of 16 x 12, and the sensor's samples in a sub-directory."""
    thumbnail, raw = bytes(16 * 12 * 3), bytes(64 * 48 * 2)
    tags: list[Tag] = [*page((16, 12), 8, 2, 3), (254, 4, 1, 1), (271, 2, 6, b"Maker\0"), *extra]
    sensor: list[Tag] = [*page((64, 48), 16, photometric), (254, 4, 1, 0)]
    return tiff([tags, sensor], [thumbnail, raw])


def packed_12_bits(samples: np.ndarray) -> bytes:
    """Samples (H, W), W even, as TIFF packs them: the first one's high bits first."""
    pairs = samples.reshape(-1, 2).astype(int)
    high, middle = pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8
    return np.stack([high, middle, pairs[:, 1] & 255], -1).astype(np.uint8).tobytes()


def png(kind: int, bits: int, samples: np.ndarray, transparent: bytes = b"") -> bytes:
    """A PNG of colour type 0, 2, 4 or 6 from samples (H, W) or (H, W, channels), and a tRNS."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if bits < 8:
        unpacked = rows[..., None] >> np.arange(bits - 1, -1, -1) & 1
        rows = np.packbits(unpacked.reshape(height, -1).astype(np.uint8), axis=-1)
    kept = rows.astype(">u2" if bits == 16 else np.uint8)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", transparent)] if transparent else [(b"IHDR", header)]
    lines = b"".join(b"\0" + line.tobytes() for line in kept)
    chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def jp2(image: Image.Image, colours: bytes) -> bytes:
    """A lossless JP2 with another colour specification (the content of its box colr)."""
    sink = io.BytesIO()
    image.save(sink, "JPEG2000", irreversible=False)
    data = sink.getvalue()
    start = data.index(b"jp2h") - 4
    (length,) = struct.unpack_from(">I", data, start)
    header = data[start + 8 : start + length]
    place = header.index(b"colr") - 4
    (old,) = struct.unpack_from(">I", header, place)
    box = struct.pack(">I", 8 + len(colours)) + b"colr" + colours
    header = header[:place] + box + header[place + old :]
    return (
        data[:start]
        + struct.pack(">I", 8 + len(header))
        + b"jp2h"
        + header
        + data[start + length :]
    )

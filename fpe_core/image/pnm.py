"""PGM and PPM with a maxval of their own: the samples as they are in the file.

Pillow scales them in a loop in Python, which takes seconds, twelve bytes a pixel, and loses what a
mask's values are. Here they are read as they are, and `levels` scales them by the header's maxval.
Files whose samples are text (P2, P3) are read here too, for the same reasons. Pillow reads the
header, black and white, and binary files with a maxval of 255.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from fpe_core.errors import ImageDecodeError
from fpe_core.image.levels import STRIP_PIXELS, Scale, scale_of_mode, to_eight_bits

_TEXT_BYTES = 1 << 15
_SPACE, _END_OF_LINE, _COMMENT = (re.compile(each) for each in (rb"\s", rb"[\r\n]", rb"#[^\r\n]*"))


def prepare(image: ImageFile.ImageFile, data: bytes) -> tuple[Image.Image, Scale]:
    """The image to decode, and how its samples are meant; call it before the pixels are decoded.

    Raises ImageDecodeError: the file ends before its pixels do, or has samples above its maxval.
    """
    if image.mode == "F":
        return image, Scale(float(image.info.get("scale", 1.0)), 1)
    tile = image.tile[0]
    if image.mode == "1" or not isinstance(tile.args, tuple) or not isinstance(tile.args[-1], int):
        return image, scale_of_mode(image.mode)  # no maxval, or one of 255
    maxval = tile.args[-1]
    scale = Scale(maxval, maxval)
    is_deep = image.mode == "RGB" and maxval > 255
    shape = (image.height, image.width, 3) if image.mode == "RGB" else (image.height, image.width)
    count = math.prod(shape)
    if tile.codec_name == "ppm_plain":
        kind = np.uint8 if maxval <= 255 or is_deep else np.uint16
        samples = _joined(_of_text(data, tile.offset, count, maxval), count, kind, scale)
    elif is_deep:
        if len(data) < tile.offset + 2 * count:
            raise ImageDecodeError(
                f"the file ends before its {image.width} x {image.height} pixels do"
            )
        parts = _of_bytes(np.frombuffer(data, ">u2", count, tile.offset))
        samples = _joined(parts, count, np.uint8, scale)
    else:
        raw_mode = "I;16B" if image.mode == "I" else image.mode
        image.tile = [tile._replace(codec_name="raw", args=(raw_mode, 0, 1))]
        return image, scale
    return Image.fromarray(samples.reshape(shape)), Scale(stored_white=maxval) if is_deep else scale


def _joined(
    parts: Iterable[NDArray[Any]], count: int, kind: type[np.unsignedinteger], scale: Scale
) -> NDArray[Any]:
    """`count` samples; those of more than eight bits are scaled to eight if `kind` asks for it."""
    samples, filled = np.empty(count, kind), 0
    for part in parts:
        is_too_deep = kind is np.uint8 and scale.white > 255
        samples[filled : filled + len(part)] = to_eight_bits(part, scale) if is_too_deep else part
        filled += len(part)
    return samples


def _of_bytes(samples: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(samples), STRIP_PIXELS):
        yield samples[start : start + STRIP_PIXELS]


def _of_text(data: bytes, start: int, count: int, maxval: int) -> Iterator[NDArray[Any]]:
    missing = count
    for numbers in _numbers(data, start):
        part = np.array(numbers[:missing], np.int64)
        if part.size and part.max() > maxval:
            raise ImageDecodeError(f"it has a sample of {part.max()}, above its maxval of {maxval}")
        yield part
        missing -= len(part)
        if not missing:
            return
    raise ImageDecodeError(f"the file ends after {count - missing} of its {count} samples")


def _numbers(data: bytes, start: int) -> Iterator[list[int]]:
    """The numbers of a text from `start` on, some at a time, without its comments."""
    while start < len(data):
        end = _next(_SPACE, data, start + _TEXT_BYTES)
        line = max(data.rfind(mark, start, end) for mark in (b"\n", b"\r", b"#"))
        if data[line : line + 1] == b"#":  # a comment, up to the end of its line
            end = _next(_END_OF_LINE, data, end)
        words = _COMMENT.sub(b" ", data[start:end]).split()
        if not all(map(bytes.isdigit, words)):
            (wrong, *_) = (word for word in words if not word.isdigit())
            raise ImageDecodeError(f"it has {wrong[:20]!r} where a sample should be")
        yield list(map(int, words))
        start = end


def _next(pattern: re.Pattern[bytes], data: bytes, start: int) -> int:
    found = pattern.search(data, start)
    return found.start() if found else len(data)

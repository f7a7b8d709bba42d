"""PGM and PPM with a maxval of their own: the samples as they are in the file.

Pillow scales them in a loop in Python, which takes seconds, twelve bytes a pixel, and loses what a
mask's values are. Here they are read as they are, and `levels` scales them by the header's maxval.
Pillow reads the header, plain text files, and files with a maxval of 255.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile

from fpe_core.errors import ImageDecodeError
from fpe_core.image.levels import STRIP_PIXELS, Scale, scale_of_mode, to_eight_bits


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
    if tile.codec_name == "ppm_plain":
        return image, Scale(65535 if image.mode == "I" else 255, maxval)
    scale = Scale(maxval, maxval)
    if image.mode == "RGB" and maxval > 255:
        return _of_deep_colours(image, data, scale), Scale(stored_white=maxval)
    raw_mode = "I;16B" if image.mode == "I" else image.mode
    image.tile = [tile._replace(codec_name="raw", args=(raw_mode, 0, 1))]
    return image, scale


def _of_deep_colours(image: ImageFile.ImageFile, data: bytes, scale: Scale) -> Image.Image:
    count = image.width * image.height * 3
    if len(data) < image.tile[0].offset + 2 * count:
        raise ImageDecodeError(f"the file ends before its {image.width} x {image.height} pixels do")
    samples = np.frombuffer(data, ">u2", count, image.tile[0].offset)
    colours = np.empty(count, np.uint8)
    for start in range(0, count, STRIP_PIXELS):
        part = slice(start, start + STRIP_PIXELS)
        colours[part] = to_eight_bits(samples[part], scale)
    return Image.fromarray(colours.reshape(image.height, image.width, 3))

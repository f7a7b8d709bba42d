"""Which number of a decoded image is white: what its file says, never what its pixels look like.

    file                                     black and white
    TIFF, PNG of n bits a sample             0 and 2^n - 1; a TIFF of kind WhiteIsZero the other way
    PGM, PPM                                 0 and the header's maxval
    JPEG 2000 of n bits a sample             0 and 2^n - 1
    TIFF of float samples                    0.0 and 1.0, as usual for float images
    PFM                                      0.0 and the header's scale
    TIFF of signed samples                   not stated by the format: such images are refused
    Pillow image of mode I, I;16; F          0 and 65535; 0.0 and 1.0

Samples outside of that are refused: they would all become black or white. In a float image NaN,
which stands for "no value", becomes black.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpe_core.errors import ImageDecodeError

STRIP_PIXELS = 1 << 16
"""Images are converted in strips of rows with about this many pixels, so that what a conversion
needs in between is small."""


@dataclass(frozen=True)
class Scale:
    """How the numbers of a Pillow image are meant.

    Attributes:
        white: the number that Pillow gives for white.
        stored_white: the number that the file has for it. Pillow scales samples of fewer than
            eight bits, for example.
        is_inverted: 0 is white, and Pillow has left that as it is.
        signed_bits: bits of a sample if the file has signed samples, else 0.
        unsigned_bits: 32 if Pillow has put unsigned samples into a signed type, else 0.
    """

    white: float = 255
    stored_white: int = 255
    is_inverted: bool = False
    signed_bits: int = 0
    unsigned_bits: int = 0


def scale_of_mode(mode: str) -> Scale:
    """The scale of an image that is not from a file, or whose file needs no other."""
    if mode == "F":
        return Scale(1, 1)
    return Scale(65535, 65535) if mode.startswith("I") else Scale()


def strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The image from top to bottom, as strips of whole rows, each with its place."""
    rows = max(1, STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def numbers_of(strip: Image.Image, scale: Scale) -> NDArray[Any]:
    """The samples of one channel as the file has them, but for the factor that Pillow applied."""
    numbers = np.asarray(strip)
    if scale.unsigned_bits == 32:
        return numbers.view(np.uint32)
    return numbers.view(np.int8) if scale.signed_bits == 8 else numbers


def to_eight_bits(numbers: NDArray[Any], scale: Scale) -> NDArray[np.uint8]:
    """Numbers from black to white as 0 to 255.

    Raises ImageDecodeError: signed samples, or numbers outside of black to white.
    """
    if scale.signed_bits:
        raise ImageDecodeError(
            f"its samples are signed whole numbers of {scale.signed_bits} bits, and the format "
            "does not say which of them is white; save the image with unsigned samples"
        )
    levels = numbers / np.float64(scale.white)
    levels *= 255
    np.nan_to_num(levels, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf)
    np.rint(levels, out=levels)
    if levels.size and not 0 <= levels.min() <= levels.max() <= 255:
        raise ImageDecodeError(
            f"it has samples outside 0 (black) to {scale.white:g} (white), from "
            f"{numbers.min():g} to {numbers.max():g}; scale or clip them, or save the image with 8 "
            "or 16 bits"
        )
    eight = levels.astype(np.uint8)
    return 255 - eight if scale.is_inverted else eight


def with_full_range(strip: Image.Image, scale: Scale) -> Image.Image:
    """A strip of mode L or RGB whose white is another number than 255, with 255 for white."""
    if scale.white == 255:
        return strip
    levels = np.rint(np.arange(256) / scale.white * 255).clip(0, 255).astype(int)
    return strip.point(levels.tolist() * len(strip.getbands()))


def stored_numbers(numbers: NDArray[Any], scale: Scale) -> NDArray[Any]:
    """The samples as the file has them, 0 being black: what Pillow scaled is scaled back."""
    if scale.white != scale.stored_white:
        numbers = np.rint(numbers / scale.white * scale.stored_white).astype(numbers.dtype)
    return scale.stored_white - numbers if scale.is_inverted else numbers

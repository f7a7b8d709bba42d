"""Decodes untrusted images to upright 8-bit sRGB.

Levels come from what the file says about its samples (`levels`), orientation from its EXIF
(`untrusted.orientation_of`), colours from its ICC profile (`colour`). The work is done in strips: a
deep or float image takes at most eight bytes a pixel, in addition to the file's own bytes. (For a
JPEG 2000 that is one tile, OpenJPEG takes up to four megabytes more.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpe_core.errors import ImageDecodeError
from fpe_core.image import jpeg2000
from fpe_core.image.colour import ToSrgb, to_srgb_with
from fpe_core.image.levels import (
    Scale,
    numbers_of,
    scale_of_mode,
    strips,
    to_eight_bits,
    with_full_range,
)
from fpe_core.image.untrusted import open_untrusted, orientation_of

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI")
"""The formats that are read, by Pillow's names. All have a signature and are decoded in this
process; other plugins of Pillow accept nearly any bytes (TGA) or start a program (EPS)."""


@dataclass(frozen=True)
class DecodedImage:
    """An upright 8-bit sRGB image; `colour_note` is the note of `colour.to_srgb`."""

    image: Image.Image
    colour_note: str


def decode_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Encoded bytes in one of `FORMATS` to an upright 8-bit sRGB image without metadata.

    Arguments and errors are those of `decode_with_note`.
    """
    return decode_with_note(data, max_pixels=max_pixels).image


def decode_with_note(data: bytes, *, max_pixels: int) -> DecodedImage:
    """An upright 8-bit sRGB image from encoded bytes, with a note on its colours.

    Args:
        data: the encoded image.
        max_pixels: more declared pixels than this are refused before anything is decoded.

    Raises:
        ImageDecodeError: empty, unknown format, a kind of it that is not read, truncated or broken.
        ImageTooLargeError: over `max_pixels`.
    """
    refusal = f"the bytes are not in a supported image format ({', '.join(FORMATS)})"
    with open_untrusted(
        data, what="image", formats=FORMATS, refusal=refusal, max_pixels=max_pixels
    ) as opened:
        profile, space = opened.image.info.get("icc_profile"), ""
        if opened.image.format == "JPEG2000":
            profile, space = jpeg2000.colours_of(data)
        pixels, note = _rgb_pixels(opened.image, opened.scale, profile)
        orientation = opened.orientation
    pixels = upright(pixels, orientation)
    return DecodedImage(Image.fromarray(pixels), note or space)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image to upright 8-bit sRGB (rules: see `fpe_core.image.fit`).

    An image that is that already, and has no metadata, is returned itself.
    """
    if image.mode == "RGB" and not image.info:
        return image
    image.load()
    pixels, _ = _rgb_pixels(image, scale_of_mode(image.mode), image.info.get("icc_profile"))
    return Image.fromarray(upright(pixels, orientation_of(image)))


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels (H, W) or (H, W, 3) turned as EXIF's orientation (1 to 8) says; contiguous."""
    if orientation in (3, 4, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7):
        pixels = pixels[:, ::-1]
    if orientation in (5, 7):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (6, 8):
        pixels = np.rot90(pixels, -1 if orientation == 6 else 1)
    return np.ascontiguousarray(pixels)


def _rgb_pixels(
    image: Image.Image, scale: Scale, profile: bytes | None
) -> tuple[NDArray[np.uint8], str]:
    """(H, W, 3) in sRGB, not turned, and the note on its colours."""
    if image.width < 1 or image.height < 1:
        raise ImageDecodeError(f"the image has no pixels ({image.width} x {image.height})")
    is_ink = image.format == "JPEG2000" and (profile or b"")[16:20] == b"CMYK"
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    convert: ToSrgb | None = None
    for rows, strip in strips(image):
        if is_ink and image.mode == "RGBA":  # Pillow does not look into the profile
            strip = Image.frombytes("CMYK", strip.size, strip.tobytes())
        colours, alpha = _colours_and_alpha(strip, scale)
        convert = convert or to_srgb_with(profile, colours.mode)
        rgb = convert(colours)
        if alpha is not None:
            background = Image.new("RGB", rgb.size, "white")
            background.paste(rgb, mask=alpha)
            rgb = background
        pixels[rows] = np.asarray(rgb)
    assert convert is not None
    return pixels, convert.note


def _colours_and_alpha(image: Image.Image, scale: Scale) -> tuple[Image.Image, Image.Image | None]:
    """8-bit L, RGB or CMYK, in the colours of the image's profile, and its opacity, if any."""
    if image.mode.startswith("I") or image.mode == "F" or scale.signed_bits:
        numbers = numbers_of(image, scale)
        alpha = None
        if "transparency" in image.info:
            alpha = Image.fromarray(
                np.where(numbers == image.info["transparency"], 0, 255).astype("u1")
            )
        return Image.fromarray(to_eight_bits(numbers, scale)), alpha
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        is_grey = image.mode in ("1", "L", "LA", "La")
        colours = layered.getchannel("R") if is_grey else layered.convert("RGB")
        return colours, layered.getchannel("A")
    if image.mode in ("L", "RGB"):
        return with_full_range(image, scale), None
    if image.mode == "CMYK":
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None

"""Decodes untrusted images: every failure is a typed error, and pixels are limited."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fpe_core.errors import ImageDecodeError, ImageTooLargeError
from fpe_core.image.colour import to_srgb


@contextmanager
def open_untrusted(
    data: bytes, *, what: str, formats: tuple[str, ...], refusal: str, max_pixels: int
) -> Iterator[Image.Image]:
    """Yields the decoded image, in the mode and orientation of the file.

    Args:
        what: its name in messages, such as "image".
        formats: the formats to accept, by Pillow's names.
        refusal: the error message for bytes in any other format.
        max_pixels: more declared pixels than this are refused before anything is decoded.

    Raises:
        ImageDecodeError: empty, another format, truncated or broken; also for any other error
            raised inside the `with` block.
        ImageTooLargeError: over `max_pixels`, or too large for the memory.
    """
    if not data:
        raise ImageDecodeError(f"the {what} is empty (0 bytes)")
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit must not undercut the caller's
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _check_pixels(image, what, max_pixels)
            image.load()
            _check_pixels(image, what, max_pixels)  # a frame may be larger than the header says
            yield image
    except (ImageDecodeError, ImageTooLargeError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(
            f"the {what} declares more pixels than the allowed {max_pixels}; raise "
            "images.max_pixels if it is genuine"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageDecodeError(refusal) from error
    except MemoryError as error:
        raise ImageTooLargeError(f"the {what} does not fit into memory") from error
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise ImageDecodeError(
            f"the {what} cannot be decoded: {type(error).__name__}: {error}"
        ) from error


def _check_pixels(image: Image.Image, what: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageTooLargeError(
            f"the {what} declares {image.width} x {image.height} pixels, more than the allowed "
            f"{max_pixels}; raise images.max_pixels if it is genuine"
        )


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
        ImageDecodeError: empty, unknown format, truncated or broken.
        ImageTooLargeError: over `max_pixels`.
    """
    refusal = f"the bytes are not in a supported image format ({', '.join(FORMATS)})"
    with open_untrusted(
        data, what="image", formats=FORMATS, refusal=refusal, max_pixels=max_pixels
    ) as image:
        return DecodedImage(*_to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image to upright 8-bit sRGB (rules: see `fpe_core.image.fit`)."""
    return _to_rgb(image)[0]


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """The same, with the note of `colour.to_srgb`."""
    with contextlib.suppress(Exception):  # a corrupt EXIF block costs the rotation, not the image
        image = ImageOps.exif_transpose(image)
    colours, alpha = _colours_and_alpha(image)
    rgb, note = to_srgb(colours, image.info.get("icc_profile"))
    if alpha is not None:
        background = Image.new("RGB", rgb.size, "white")
        background.paste(rgb, mask=alpha)
        rgb = background
    rgb.info = {}
    return rgb, note


def _colours_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """8-bit L, RGB or CMYK, in the colours of the image's profile, and its opacity, if any."""
    if image.mode.startswith("I") or image.mode == "F":
        return _high_depth_to_grey(image), None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        is_grey = image.mode in ("1", "L", "LA", "La")
        colours = layered.getchannel("R") if is_grey else layered.convert("RGB")
        return colours, layered.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _high_depth_to_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float greyscale: [0, 65535] (or [0, 1] for small floats) to [0, 255]."""
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    highest = float(values.max(initial=0.0))
    if image.mode == "F" and highest <= 1.0:
        full_scale = 1.0
    elif image.mode.startswith("I;16") or highest > 255:
        full_scale = max(65535.0, highest)
    else:
        full_scale = 255.0
    return Image.fromarray(np.clip(np.rint(values * (255.0 / full_scale)), 0, 255).astype(np.uint8))

"""Opens encoded pictures that nobody vouches for: typed errors, and no more pixels than allowed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from fpe_core.errors import ImageDecodeError, ImageTooLargeError


@contextmanager
def open_untrusted(
    data: bytes, *, what: str, formats: tuple[str, ...], refusal: str, max_pixels: int
) -> Iterator[Image.Image]:
    """The decoded picture, as the file has it.

    Args:
        what: its name in messages, such as "image".
        formats: Pillow's names of those that are read.
        refusal: the message for bytes in none of them.
        max_pixels: more declared pixels than this are refused before anything is decoded.

    Raises:
        ImageDecodeError: empty, another format, truncated or broken; and for whatever else is
            raised in the context.
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

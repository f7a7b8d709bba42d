"""Masks of objects: read without loss, and transformed with the image that is fitted.

A mask's pixels are values, not colours: no profile, gamma or interpolation may touch them. It has
the size of the upright source, and is not 0 where the object is.

    1         0 and 255                    P         the palette's indices
    L         0..255                       RGB       three bytes; equal ones become one
    I;16, I   0..65535                     LA, RGBA  as without alpha; must be opaque

Values are the file's own samples: 0 to 15 in a PNG of 4 bits, 0 to maxval in a PGM. Black is 0: in
a TIFF of kind WhiteIsZero the largest sample is read as 0. A mask is turned as its own EXIF says,
which is the rule for sources.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpe_core.errors import ImageDecodeError
from fpe_core.image.decode import upright
from fpe_core.image.fit import Fit
from fpe_core.image.levels import Scale, numbers_of, stored_numbers, strips
from fpe_core.image.untrusted import open_untrusted

MASK_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "PPM")
"""By Pillow's names. Not JPEG, nor WebP, which can be lossy too: they change values next to an
edge."""

MaskValues = NDArray[Any]
"""(H, W) uint8 or uint16, or (H, W, 3) uint8."""


@dataclass(frozen=True)
class FittedMask:
    """A mask of the size of the fitted image; outside the source it is 0.

    `visible` is the share of the object's pixels in the source that are still in the image, 0..1.
    """

    values: MaskValues
    visible: float


def decode_mask(data: bytes, *, max_pixels: int) -> MaskValues:
    """An encoded mask in one of `MASK_FORMATS`, turned upright by the rule of its source.

    Raises:
        ImageDecodeError: empty, another format, broken, or a mode that is not listed above.
        ImageTooLargeError: over `max_pixels`.
    """
    refusal = (
        f"the bytes are not in a lossless mask format ({', '.join(MASK_FORMATS)}); save it as PNG"
    )
    with open_untrusted(
        data, what="mask", formats=MASK_FORMATS, refusal=refusal, max_pixels=max_pixels
    ) as opened:
        values, orientation = _values_of(opened.image, opened.scale), opened.orientation
    values = upright(values, orientation)
    is_grey = values.ndim == 3 and bool((values == values[..., :1]).all())
    return np.ascontiguousarray(values[..., 0]) if is_grey else values


def _values_of(image: Image.Image, scale: Scale) -> MaskValues:
    """(H, W) or (H, W, 3), not turned."""
    mode = image.mode
    if mode in ("RGBA", "LA", "PA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise ImageDecodeError(
                "the mask is partly transparent; mark the object by values other than 0 instead"
            )
        mode = mode[:-1]
        # converting PA to P would choose new indices
        image = image.getchannel(0) if mode in ("L", "P") else image.convert("RGB")
    if mode not in ("1", "L", "P", "RGB") and not mode.startswith("I"):
        raise ImageDecodeError(
            f"the mask has pixels of mode {mode}; save it with whole numbers, as PNG"
        )
    if mode in ("L", "RGB") and scale.stored_white > 255:
        raise ImageDecodeError(
            "the mask has colours of 16 bits, of which Pillow keeps 8; save it as grey of 16 bits"
        )
    shape = (image.height, image.width, *((3,) if mode == "RGB" else ()))
    values = np.empty(shape, np.uint16 if mode.startswith("I") else np.uint8)
    for rows, strip in strips(image):
        values[rows] = _numbers_of(strip, scale)
    return values


def _numbers_of(strip: Image.Image, scale: Scale) -> MaskValues:
    if strip.mode in ("1", "P"):
        return np.asarray(strip.convert("L") if strip.mode == "1" else strip)
    numbers = stored_numbers(numbers_of(strip, scale), scale)
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) <= 65535:
        raise ImageDecodeError("the mask has values outside 0..65535")
    return numbers


def fit_mask(values: MaskValues, fit: Fit, width_px: int, height_px: int) -> FittedMask:
    """A mask of the upright source in the image of width_px x height_px that `fit` describes.

    Every pixel of the result has the value of the source's pixel under its centre, so no new values
    appear. The border that padding adds around a source is 0.

    Raises:
        ImageDecodeError: a mask of another size than the upright source.
    """
    height, width = values.shape[:2]
    if (width, height) != (fit.source_width_px, fit.source_height_px):
        raise ImageDecodeError(
            f"the mask is {width} x {height} px, but its upright image is {fit.source_width_px} x "
            f"{fit.source_height_px} px; a mask must have the size of the upright image"
        )
    columns = _sampled(width_px, fit.scale_x, fit.offset_x_px)
    rows = _sampled(height_px, fit.scale_y, fit.offset_y_px)
    fitted = values[np.ix_(np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1))]
    is_source = _is_inside(rows, height)[:, None] & _is_inside(columns, width)[None]
    fitted[~is_source] = 0
    return FittedMask(fitted, _visible(values, fit, width_px, height_px))


def source_area(fit: Fit, width_px: int, height_px: int) -> NDArray[np.bool_]:
    """Which pixels of the fitted image are the source's: (height_px, width_px); all but padding."""
    columns = _is_inside(_sampled(width_px, fit.scale_x, fit.offset_x_px), fit.source_width_px)
    rows = _is_inside(_sampled(height_px, fit.scale_y, fit.offset_y_px), fit.source_height_px)
    return rows[:, None] & columns[None]


def encode_mask(values: MaskValues) -> bytes:
    """As PNG: grey of 8 or 16 bits, or RGB. Equal values give equal bytes; nothing is lost."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(sink, "PNG")
    return sink.getvalue()


def object_of(values: MaskValues) -> NDArray[np.bool_]:
    """Where the object is: (H, W)."""
    found: NDArray[np.bool_] = np.asarray(values != 0)
    if found.ndim == 3:
        found = np.asarray(found.any(axis=-1))
    return found


def _sampled(count: int, scale: float, offset_px: float) -> NDArray[np.int64]:
    """The source's pixel under the centre of each of `count` fitted ones; it may lie outside."""
    places = (np.arange(count) + 0.5 - offset_px) / scale
    # Rounding must not put a centre outside a source that it lies in.
    snapped = np.where(np.abs(places - np.rint(places)) < 1e-9, np.rint(places), places)
    return np.floor(snapped).astype(np.int64)


def _is_inside(indices: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    return (indices >= 0) & (indices < size)


def _visible(values: MaskValues, fit: Fit, width_px: int, height_px: int) -> float:
    # Only counts: the coordinates of all of an object's pixels would take 32 bytes each.
    height, width = values.shape[:2]
    x = (np.arange(width) + 0.5) * fit.scale_x + fit.offset_x_px
    y = (np.arange(height) + 0.5) * fit.scale_y + fit.offset_y_px
    columns, rows = (x >= 0) & (x < width_px), (y >= 0) & (y < height_px)
    found = object_of(values)
    per_row = np.count_nonzero(found[:, columns], axis=1)
    everything = np.count_nonzero(found)
    return int(per_row[rows].sum()) / everything if everything else 0.0

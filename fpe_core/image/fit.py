"""Images of any kind to upright 8-bit RGB of exactly the model's size, without distortion.

Policies (`fit_image`):

    crop   scale so that the shorter side fits, keep the centre, cut the rest. The default: the
           model sees nothing but the image.
    pad    scale so that the longer side fits, repeat the border pixels around it. Nothing is cut.

Both keep the aspect ratio (to within half a pixel for `pad`). `Fit` records the transform, in both
directions, so that boxes, masks and points can be transformed too.

Conversion to RGB: EXIF orientation is applied, and no other; deep and float samples are scaled to
8 bits by what the file says about them (see `levels`); transparency is blended over white; of an
animation the first frame is used; colours are converted to sRGB by their ICC profile (see
`colour`), or by Pillow if there is none. Only pixels are kept: no EXIF (it may say where a photo
was taken), XMP, comment or profile.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from fpe_core.errors import ImageDecodeError, ParameterError
from fpe_core.image.decode import to_rgb

POLICIES = ("crop", "pad")


@dataclass(frozen=True)
class Fit:
    """How a source was fitted: x_fitted = x_source * scale_x + offset_x_px, likewise y.

    Coordinates are continuous pixel coordinates with (0, 0) at the corner of the top left pixel of
    the upright source.
    """

    policy: str
    source_width_px: int
    source_height_px: int
    scale_x: float
    scale_y: float
    offset_x_px: float
    offset_y_px: float

    def to_fitted(self, x: float, y: float) -> tuple[float, float]:
        """A point of the source in the fitted image."""
        return x * self.scale_x + self.offset_x_px, y * self.scale_y + self.offset_y_px

    def to_source(self, x: float, y: float) -> tuple[float, float]:
        """A point of the fitted (and so of the edited) image in the source."""
        return (x - self.offset_x_px) / self.scale_x, (y - self.offset_y_px) / self.scale_y

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `Fit(**fit.to_dict()) == fit`."""
        return asdict(self)


@dataclass(frozen=True)
class FittedImage:
    """An RGB image of the requested size, and how it was fitted."""

    image: Image.Image
    fit: Fit


def fit_image(
    image: Image.Image, width_px: int, height_px: int, policy: str = "crop"
) -> FittedImage:
    """Fits an image into exactly width_px x height_px without distorting it.

    An RGB image that already has the size is returned unchanged, pixel for pixel.

    Raises:
        ParameterError: an unknown policy.
        ImageDecodeError: an image without pixels, or with samples outside of black to white.
    """
    if policy not in POLICIES:
        raise ParameterError(f"fit must be one of {', '.join(POLICIES)}, got {policy!r}")
    image = to_rgb(image)
    if image.width < 1 or image.height < 1:
        raise ImageDecodeError(f"the image has no pixels ({image.width} x {image.height})")
    if image.size == (width_px, height_px):
        return FittedImage(image.copy(), Fit(policy, width_px, height_px, 1.0, 1.0, 0.0, 0.0))
    fitted = _crop if policy == "crop" else _pad
    return fitted(image, width_px, height_px)


def _crop(image: Image.Image, width_px: int, height_px: int) -> FittedImage:
    scale = max(width_px / image.width, height_px / image.height)
    left = (image.width - width_px / scale) / 2
    top = (image.height - height_px / scale) / 2
    box = (
        max(0.0, left),
        max(0.0, top),
        min(float(image.width), left + width_px / scale),
        min(float(image.height), top + height_px / scale),
    )
    resized = image.resize((width_px, height_px), Image.Resampling.LANCZOS, box=box)
    fit = Fit("crop", image.width, image.height, scale, scale, -left * scale, -top * scale)
    return FittedImage(resized, fit)


def _pad(image: Image.Image, width_px: int, height_px: int) -> FittedImage:
    scale = min(width_px / image.width, height_px / image.height)
    inner_width = max(1, min(width_px, round(image.width * scale)))
    inner_height = max(1, min(height_px, round(image.height * scale)))
    inner = image.resize((inner_width, inner_height), Image.Resampling.LANCZOS)
    left, top = (width_px - inner_width) // 2, (height_px - inner_height) // 2
    padding = (
        (top, height_px - inner_height - top),
        (left, width_px - inner_width - left),
        (0, 0),
    )
    padded = Image.fromarray(np.pad(np.asarray(inner), padding, mode="edge"))
    fit = Fit(
        "pad",
        image.width,
        image.height,
        inner_width / image.width,
        inner_height / image.height,
        float(left),
        float(top),
    )
    return FittedImage(padded, fit)

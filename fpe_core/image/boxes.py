"""Boxes around objects: read, checked, and transformed with the image that is fitted.

Pixel coordinates are continuous, as in `Fit`: (0, 0) is the corner of the top left pixel of the
upright source, so a box from 3 to 5 covers exactly the pixels 3 and 4. COCO's boxes are `xywh`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fpe_core.errors import ParameterError
from fpe_core.image.fit import Fit

BOX_FORMATS = ("xywh", "xyxy")
"""x, y, width, height (COCO); left, top, right, bottom. All in pixels."""


@dataclass(frozen=True)
class Box:
    """left <= right, top <= bottom, pixels, finite."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def read(cls, values: Sequence[float | None], box_format: str) -> Box:
        """Four numbers in one of `BOX_FORMATS`.

        Raises:
            ParameterError: another format, another number of values, one that is missing or not
                finite, a negative width or height.
        """
        if box_format not in BOX_FORMATS:
            known = ", ".join(BOX_FORMATS)
            raise ParameterError(f"the format of a box must be one of {known}, got {box_format!r}")
        if len(values) != 4:
            raise ParameterError(f"a box has four numbers, this one has {len(values)}")
        numbers = [math.nan if value is None else float(value) for value in values]
        if not all(map(math.isfinite, numbers)):
            raise ParameterError(f"a box has finite numbers only, got {list(values)}")
        left, top, third, fourth = numbers
        is_corner = box_format == "xyxy"
        right, bottom = (third, fourth) if is_corner else (left + third, top + fourth)
        if right < left or bottom < top:
            raise ParameterError(
                f"a box must not have a negative width or height, got {list(values)} as "
                f"{box_format}"
            )
        return cls(left, top, right, bottom)

    def write(self, box_format: str) -> list[float]:
        """The reverse of `read`."""
        if box_format == "xyxy":
            return [self.left, self.top, self.right, self.bottom]
        return [self.left, self.top, self.right - self.left, self.bottom - self.top]

    @property
    def area(self) -> float:
        """Square pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    def clipped(self, width_px: float, height_px: float) -> Box:
        """The part inside an image of that size; a box without area if there is none."""
        left, right = (min(max(x, 0.0), float(width_px)) for x in (self.left, self.right))
        top, bottom = (min(max(y, 0.0), float(height_px)) for y in (self.top, self.bottom))
        return Box(left, top, right, bottom)


@dataclass(frozen=True)
class FittedBox:
    """A source's box in pixels of the fitted (and so of the edited) image.

    `visible` is the share of the source's box that is still inside, 0..1; what lay outside the
    source counts as lost. It is 0 for a box without area.
    """

    box: Box
    visible: float


def fit_box(box: Box, fit: Fit, width_px: int, height_px: int) -> FittedBox:
    """A box of the upright source in the image of width_px x height_px that `fit` describes."""
    inside = box.clipped(fit.source_width_px, fit.source_height_px)
    left, top = fit.to_fitted(inside.left, inside.top)
    right, bottom = fit.to_fitted(inside.right, inside.bottom)
    fitted = Box(left, top, right, bottom).clipped(width_px, height_px)
    whole = box.area * fit.scale_x * fit.scale_y
    return FittedBox(fitted, min(1.0, fitted.area / whole) if whole > 0 else 0.0)

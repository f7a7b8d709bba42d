"""The size of a picture as Stable Diffusion XL is told it, beside the prompt.

Podell et al. 2024 (arXiv 2307.01952, sec. 2.2): the size that a training image had before it was
scaled, where it was cut, and the size it was cut to. An edit has its picture's own three, the same
for the source and all its edits.
"""

from __future__ import annotations

from typing import NamedTuple

from fpe_core.image.fit import Fit


class SizeIds(NamedTuple):
    """The six numbers in the order of the model's input, in pixels."""

    original_height: int
    original_width: int
    top: int
    left: int
    height: int
    width: int


def size_ids_of(fit: Fit, width_px: int, height_px: int) -> SizeIds:
    """Those of a fitted image.

    The crop is in pixels of the scaled image, as in training. A padded image has none: nothing of
    it is cut off.
    """
    top, left = (max(0, round(-offset)) for offset in (fit.offset_y_px, fit.offset_x_px))
    return SizeIds(fit.source_height_px, fit.source_width_px, top, left, height_px, width_px)


def size_ids_of_synthetic(width_px: int, height_px: int) -> SizeIds:
    """Those of an image that is sampled: it has its size, and nothing is cut off."""
    return SizeIds(height_px, width_px, 0, 0, height_px, width_px)

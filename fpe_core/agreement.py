"""Tolerances: how much an edit may differ when it is made again in another batch.

An edit depends only on its source, prompts, parameters and seed. Between batches only rounding
differs: a kernel may sum in another order for another number of rows, and the steps amplify that.
In float64 the difference is about 1e-14 of the latent, which shows that it is rounding and nothing
else.

`tests/fpe_core/test_batch_independence.py` checks the editor against these bounds, and `fpe verify
--recompute` checks a finished run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LATENT_TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float32: 1e-4, torch.float64: 1e-11}
)
"""Bound on `latent_distance` of the same edit in two batches, by the dtype of the networks."""


@dataclass(frozen=True)
class ImageTolerance:
    """Upper bounds on an `ImageDifference`; it has to meet all of them."""

    largest_levels: int
    share: float
    mean_levels: float

    def admits(self, difference: ImageDifference) -> bool:
        return (
            difference.largest_levels <= self.largest_levels
            and difference.share <= self.share
            and difference.mean_levels <= self.mean_levels
        )


@dataclass(frozen=True)
class ImageDifference:
    """How much two 8-bit images of the same size differ.

    Attributes:
        largest_levels: the largest difference of any value (three per pixel), 0..255.
        share: share of the pixels that differ in any of their values, 0..1.
        mean_levels: mean difference over all values, 0..255.
    """

    largest_levels: int
    share: float
    mean_levels: float

    def __str__(self) -> str:
        return (
            f"up to {self.largest_levels} of 255 levels apart, {self.share:.2%} of the pixels "
            f"differ, by {self.mean_levels:.3g} levels on average over all"
        )


_ROUNDING = ImageTolerance(largest_levels=1, share=0.01, mean_levels=0.01)
_HALF_ROUNDING = ImageTolerance(largest_levels=255, share=1.0, mean_levels=4.0)
_LOSS_ON_AVERAGE, _LOSS_ANYWHERE = 0.5, 2.0  # allowed shares of an encoding's loss


def image_tolerance(dtype: torch.dtype, loss: ImageDifference | None = None) -> ImageTolerance:
    """How much the same edit may differ between two batches.

    float32, float64    1 level, in at most 1 % of the pixels
    half precision      4 levels on average

    In half precision, rounding errors can grow over the steps until an edge moves. Measured with 25
    steps of the built-in model on a CPU, alone against together: bfloat16 (six edits) at most 0.34
    levels on average and 19 anywhere; float16 (six) 1.7 and 151; float32 (twelve) 1 anywhere, in at
    most 0.3 % of the pixels. An edit with another prompt differs by more than 20 on average. If a
    run's edits must not depend on its batches, use float32 (`model.dtype`).

    Args:
        dtype: the dtype of the networks.
        loss: how much a lossy encoding changes one of the two images, if encoded images are
            compared. They may then differ more, because one level can decide what an encoder keeps:
            by half of the loss on average (measured: 0.3 of it) and by twice its largest value
            anywhere (0.9).
    """
    rounding = _ROUNDING if dtype in LATENT_TOLERANCE else _HALF_ROUNDING
    if loss is None:
        return rounding
    return ImageTolerance(
        largest_levels=rounding.largest_levels + int(_LOSS_ANYWHERE * loss.largest_levels),
        share=1.0,
        mean_levels=rounding.mean_levels + _LOSS_ON_AVERAGE * loss.mean_levels,
    )


def image_difference(first: Image.Image, second: Image.Image) -> ImageDifference:
    """Compares two RGB images. Raises ValueError for different sizes."""
    if first.size != second.size:
        raise ValueError(f"images of different sizes: {first.size} and {second.size}")
    differences = np.abs(np.asarray(first, np.int16) - np.asarray(second, np.int16))
    return ImageDifference(
        largest_levels=int(differences.max(initial=0)),
        share=float(differences.any(axis=-1).mean()),
        mean_levels=float(differences.mean()),
    )


def latent_distance(latent: Tensor, reference: Tensor) -> float:
    """The norm of the difference, as a share of the reference's norm."""
    return float((latent - reference).norm() / reference.norm())

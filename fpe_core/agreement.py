"""How closely the same edit comes out again, whatever it is batched with: the tolerances.

An edit depends on its source, prompts, parameters and seed, and on nothing else. What differs
between batches is rounding: a kernel may sum in another order for another number of rows, and the
steps carry that on. In float64 it is some 1e-14 of the latent, which shows that it is nothing else.

`tests/fpe_core/test_batch_independence.py` holds the editor to these numbers, and `fpe verify
--recompute` a finished run.
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
"""Bound on `latent_distance` of the same edit in two batches, by the type of the networks."""


@dataclass(frozen=True)
class ImageTolerance:
    """Bounds on an `ImageDifference`; all of them hold."""

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
    """How far two 8-bit images of one size are apart.

    Attributes:
        largest_levels: of all values (three per pixel), 0..255.
        share: pixels that differ in any of their values, 0..1.
        mean_levels: over all values.
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
_LOSSES_APART, _LARGEST_LOSSES_APART = 0.5, 2.0


def image_tolerance(dtype: torch.dtype, loss: ImageDifference | None = None) -> ImageTolerance:
    """How far the same edit may be apart in two batches.

    float32, float64    1 level, in at most 1 % of the pixels
    half precision      4 levels on average

    Half precision's rounding can grow over the steps until an edge lies elsewhere. Measured with 25
    steps of the built-in model on a CPU, alone against together: bfloat16 (six edits) at most 0.34
    levels on average and 19 anywhere; float16 (six) 1.7 and 151; float32 (twelve) 1 anywhere, in at
    most 0.3 % of the pixels. An edit with another prompt is more than 20 apart on average. A run
    that must not show its batches is made in float32 (`model.dtype`).

    Args:
        dtype: of the networks.
        loss: what a lossy encoding does to one of the two images, where encoded ones are compared.
            They may be farther apart then, for one level decides what an encoder keeps: half of
            the loss on average (measured: 0.3 of it) and twice its largest value anywhere (0.9).
    """
    rounding = _ROUNDING if dtype in LATENT_TOLERANCE else _HALF_ROUNDING
    if loss is None:
        return rounding
    return ImageTolerance(
        largest_levels=rounding.largest_levels + int(_LARGEST_LOSSES_APART * loss.largest_levels),
        share=1.0,
        mean_levels=rounding.mean_levels + _LOSSES_APART * loss.mean_levels,
    )


def image_difference(first: Image.Image, second: Image.Image) -> ImageDifference:
    """Compares two RGB images. Raises ValueError for different sizes."""
    if first.size != second.size:
        raise ValueError(f"images of different sizes: {first.size} and {second.size}")
    apart = np.abs(np.asarray(first, np.int16) - np.asarray(second, np.int16))
    return ImageDifference(
        largest_levels=int(apart.max(initial=0)),
        share=float(apart.any(axis=-1).mean()),
        mean_levels=float(apart.mean()),
    )


def latent_distance(latent: Tensor, reference: Tensor) -> float:
    """The norm of the difference, as a share of the reference's norm."""
    return float((latent - reference).norm() / reference.norm())

"""Masks and prompts that split the attention of rows into inside and outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpe_core.unet.exchange import Exchange, Handed, Regions
from fpe_core.unet.prompts import TextKeys
from fpe_core.unet.rows import Chunk


@dataclass(frozen=True, eq=False)
class RegionSplit:
    """What splits the attention of the rows of some latents.

    Attributes:
        inside: number of positions of an attention to its masks, (latents, positions), bool.
        inside_tokens, outside_tokens: (latents, text tokens), see `Regions`.
    """

    inside: Mapping[int, Tensor]
    inside_tokens: Tensor
    outside_tokens: Tensor

    def of(self, chunk: Chunk, keys: TextKeys) -> Exchange:
        del keys
        return Exchange(
            regions=Regions(
                {positions: masks[chunk.latents] for positions, masks in self.inside.items()},
                self.inside_tokens[chunk.items],
                self.outside_tokens[chunk.items],
            )
        )

    def keep(self, handed: Handed, chunk: Chunk) -> None:
        del handed, chunk


def masks_by_positions(
    masks: Sequence[np.ndarray[Any, np.dtype[np.bool_]]],
    grids: Sequence[tuple[int, int]],
    device: torch.device,
) -> dict[int, Tensor]:
    """Masks of pixels at the grids of a UNet's levels, by the nearest pixel.

    Args:
        masks: of one size, (height_px, width_px), bool.
        grids: (height, width) of each level.

    Returns:
        number of positions to (masks, positions), bool.
    """
    made = {}
    for height, width in grids:
        seen = [
            mask[np.ix_(_nearest(height, mask.shape[0]), _nearest(width, mask.shape[1]))].ravel()
            for mask in masks
        ]
        stacked = np.stack(seen) if seen else np.zeros((0, height * width), np.bool_)
        made[height * width] = torch.from_numpy(stacked).to(device)
    return made


def _nearest(count: int, pixels: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """floor((i + 0.5) pixels / count) for each i of `count`."""
    return (2 * np.arange(count) + 1) * pixels // (2 * count)

"""Proximal guidance while edits are sampled: see `fpe_core.proximal`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fpe_core.proximal import PULLED_BELOW, Proximal


class NearSource:
    """Shrinks the differences of a step's predictions, then pulls the latents to their sources.

    All statistics are of one edit, so that an edit does not depend on its batch.
    """

    def __init__(self, proximal: Proximal) -> None:
        self._proximal = proximal
        self._kept: Tensor | None = None

    def shrink(self, difference: Tensor) -> Tensor:
        """What is kept of the differences of edits, (edits, C, h, w)."""
        size, quantile = difference.abs(), self._proximal.quantile
        limits = [each.quantile(quantile) for each in size.flatten(1)]
        limit = torch.stack(limits)[:, None, None, None] if limits else size[:, :1, :1, :1]
        self._kept = size > limit
        if self._proximal.norm == "l1":
            difference = difference.sign() * (size - limit)
        return difference.where(self._kept, torch.zeros_like(difference))

    def pull(self, z: Tensor, timestep: int, z_source: Tensor) -> Tensor:
        """The latents after a step of `timestep`, moved to their sources', (edits, C, h, w).

        Positions next to one where something was kept stay too. Nothing moves after a step without
        guidance.
        """
        kept, self._kept = self._kept, None
        if not self._proximal.pull or timestep >= PULLED_BELOW or kept is None or not len(z):
            return z
        near = functional.max_pool2d(kept.any(dim=1, keepdim=True).to(z), 3, stride=1, padding=1)
        return z + self._proximal.pull * (1.0 - near) * (z_source - z)

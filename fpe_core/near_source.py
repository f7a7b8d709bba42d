"""Proximal guidance while edits are sampled: see `fpe_core.proximal`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fpe_core.proximal import PULLED_BELOW, Proximal


class NearSource:
    """Shrinks the differences of a step's predictions, then pulls the latents to their sources.

    All statistics are of one edit, so that an edit does not depend on its batch.
    """

    def __init__(
        self, proximal: Proximal | None, of_sources: Callable[[int, Tensor], Tensor] | None = None
    ) -> None:
        """
        Args:
            proximal: None: nothing is shrunk or pulled.
            of_sources: (level k, z_k of sources that are sampled) to the latents of the edits'
                sources there, (edits, C, h, w); needed for a pull.
        """
        self._proximal = proximal
        self._of_sources = of_sources
        self._kept: Tensor | None = None

    @property
    def shrink(self) -> Callable[[Tensor], Tensor] | None:
        """Differences of edits, (edits, C, h, w), to what is kept of them; None: all of them."""
        return None if self._proximal is None else self._shrunk

    def pull(self, z: Tensor, k: int, timestep: int, z_source: Tensor) -> Tensor:
        """z_k after a step of `timestep`, moved to the sources'.

        Positions next to one where something was kept stay too. Nothing moves after a step without
        guidance. `z_source`: z_k of sources that are sampled beside their edits.
        """
        kept, self._kept = self._kept, None
        if kept is None or self._proximal is None or self._of_sources is None or not len(z):
            return z
        if not self._proximal.pull or timestep >= PULLED_BELOW:
            return z
        near = functional.max_pool2d(kept.any(dim=1, keepdim=True).to(z), 3, stride=1, padding=1)
        return z + self._proximal.pull * (1.0 - near) * (self._of_sources(k, z_source) - z)

    def _shrunk(self, difference: Tensor) -> Tensor:
        assert self._proximal is not None
        size, quantile = difference.abs(), self._proximal.quantile
        limits = [each.quantile(quantile) for each in size.flatten(1)]
        limit = torch.stack(limits)[:, None, None, None] if limits else size[:, :1, :1, :1]
        self._kept = size > limit
        if self._proximal.norm == "l1":
            difference = difference.sign() * (size - limit)
        return difference.where(self._kept, torch.zeros_like(difference))

"""Blended latent diffusion: noise inside a given mask, the noised source outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fpe_core.editors.method import EditMethod
from fpe_core.injection import Blend, EditRule, Start


@dataclass(frozen=True)
class BlendedLatent(EditMethod):
    """Sampled from noise; after the step to level k the latent outside the mask is z_0 noised to k.

    The noise of every level is another one, all of the edit's seed; at level 0 there is none, so
    that the latent outside is the source's own. No inversion and no row of the source.
    """

    name: ClassVar[str] = "blended"
    paper: ClassVar[str] = (
        "Blended Latent Diffusion (SIGGRAPH 2023, arXiv 2206.02779, alg. 1, without its decoder "
        "optimisation)"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"mask", "seed"})
    rows_formula: ClassVar[str] = "2*T*N"

    @property
    def rule(self) -> EditRule:
        return EditRule(start=Start("noise"), blend=Blend("given", outside="noised"))

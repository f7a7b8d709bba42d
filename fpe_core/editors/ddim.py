"""Guided DDIM sampling from the inverted latent, and nothing else: what the others add to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fpe_core.editors.method import EditMethod
from fpe_core.injection import EditRule


@dataclass(frozen=True)
class DdimEditing(EditMethod):
    """Nothing is taken from the source but its inverted latent z_T."""

    name: ClassVar[str] = "ddim"
    paper: ClassVar[str] = (
        "Denoising Diffusion Implicit Models (ICLR 2021, arXiv 2010.02502, eq. 12 and sec. 4.3)"
    )
    rows_formula: ClassVar[str] = "T + 1 + (2*T - 1)*N"

    @property
    def rule(self) -> EditRule:
        return EditRule()

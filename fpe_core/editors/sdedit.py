"""SDEdit: the source with noise, sampled from there with the target prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fpe_core.editors.method import EditMethod, share
from fpe_core.errors import ParameterError
from fpe_core.injection import EditRule, Start, floor_of
from fpe_core.layer_rules import require_number


@dataclass(frozen=True)
class SdEdit(EditMethod):
    """z_0 is noised in closed form to level S = floor(strength T), and S steps are sampled.

    No inversion and no row of the source. The noise is the seed's, so that an edit does not depend
    on its batch.

    Attributes:
        strength: above 0, up to 1; what is published for Stable Diffusion is 0.8 (diffusers'
            img2img).
    """

    name: ClassVar[str] = "sdedit"
    paper: ClassVar[str] = (
        "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (ICLR "
        "2022, arXiv 2108.01073, alg. 1), in the latent"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"seed"})
    rows_formula: ClassVar[str] = "2*S*N"

    strength: float = 0.8

    def __post_init__(self) -> None:
        require_number("strength", self.strength, minimum=0.0, maximum=1.0)
        if floor_of(self.strength, 1000) == 0:
            raise ParameterError(f"strength must be above 0, got {self.strength!r}")

    def keeping(self, more: float) -> SdEdit:
        """Less noise."""
        return replace(self, strength=share(self.strength - more, 0.1))

    @property
    def rule(self) -> EditRule:
        return EditRule(start=Start("noised", float(self.strength)))

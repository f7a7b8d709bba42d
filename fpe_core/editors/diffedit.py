"""DiffEdit: only where the prompts see something different."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fpe_core.editors.method import EditInputs, EditMethod, share
from fpe_core.errors import ParameterError
from fpe_core.injection import Blend, DifferenceMask, EditRule, Start, floor_of
from fpe_core.layer_rules import require_number


@dataclass(frozen=True)
class DiffEdit(EditMethod):
    """A mask is found, and sampled from a part of the inversion; outside it is the inversion's.

    The mask comes from D noised copies of z_0 (`DifferenceMask`), with two unguided rows each, or
    is given with the edit. Its statistics are of one edit alone. The inversion ends, and the edit
    starts, at level K = floor(encode_ratio T). After the step to level k the latent outside the
    mask is z_k of the inversion, and z_0 in the end.

    Attributes:
        encode_ratio: how far the source is inverted, a share of the steps, above 0, up to 1.
        mask_samples, mask_strength, mask_most, mask_threshold: see `DifferenceMask`.
    """

    name: ClassVar[str] = "diffedit"
    paper: ClassVar[str] = (
        "DiffEdit: Diffusion-based Semantic Image Editing with Mask Guidance (ICLR 2023, arXiv "
        "2210.11427, sec. 3.2)"
    )
    takes: ClassVar[frozenset[str]] = frozenset({"mask", "seed"})
    rows_formula: ClassVar[str] = "K + 2*D*N + 1 + (2*K - 1)*N"

    encode_ratio: float = 0.8
    mask_samples: int = 10
    mask_strength: float = 0.5
    mask_most: float = 3.0
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        require_number("encode_ratio", self.encode_ratio, minimum=0.0, maximum=1.0)
        if floor_of(self.encode_ratio, 1000) == 0:
            raise ParameterError(f"encode_ratio must be above 0, got {self.encode_ratio!r}")
        self._mask  # noqa: B018 - refuses what is out of range

    def keeping(self, more: float) -> DiffEdit:
        """A start with less noise; below 0 a larger mask, because the inversion goes no further."""
        if more < 0:
            return replace(self, mask_threshold=share(self.mask_threshold + more))
        return replace(self, encode_ratio=share(self.encode_ratio - more, 0.1))

    @property
    def _mask(self) -> DifferenceMask:
        return DifferenceMask(
            self.mask_samples, self.mask_strength, self.mask_most, self.mask_threshold
        )

    @property
    def rule(self) -> EditRule:
        return EditRule(
            start=Start("inverted", float(self.encode_ratio)), blend=Blend(mask=self._mask)
        )

    def rule_for(self, inputs: EditInputs) -> EditRule:
        """A mask that is given needs no noise and no rows."""
        rule = self.rule
        return rule if inputs.mask is None else replace(rule, blend=Blend(mask="given"))

    def missing(self, inputs: EditInputs, source_prompt: str) -> tuple[str, ...]:
        """A seed for the mask's noise, unless a mask is given."""
        del source_prompt
        return ("seed",) if inputs.mask is None and inputs.seed is None else ()

"""Shape-guided diffusion: what is inside a mask attends to the inside, and the rest to the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

from fpe_core.editors.method import EditInputs, EditMethod
from fpe_core.editors.region_prompts import RegionPrompts
from fpe_core.injection import AttentionRegions, Blend, EditRule
from fpe_core.layer_rules import require_number


@dataclass(frozen=True)
class ShapeGuided(EditMethod):
    """Inside-outside attention, in the inversion and in the edit, in all layers at all steps.

    The source is inverted with the edit's mask and with prompts of what is inside and outside of
    it, and the edit starts there; the latent outside is that inversion's of the same level. Edits
    of a source with the same mask and the same prompts of the source share an inversion, and V is
    how many there are. See `AttentionRegions`.

    Four prompts, `EditInputs.region_prompts`. What is not given: what is inside is described by the
    blend words, if the edit has some, else by the source prompt and the edit's; what is outside by
    the source prompt, and in the edit as in the source. The unconditional row has the negative
    prompt, with the same attention.

    The published edits have noise in a part of the inverted latent as an option, which is off and
    not here, and put back a latent that is one level too noisy.

    Attributes:
        cross_scale: factor for the attention to the prompts' tokens, at least 0; in the edit not
            for those that the source's prompt of the same region has too.
    """

    name: ClassVar[str] = "shape_guided"
    paper: ClassVar[str] = (
        "Shape-Guided Diffusion with Inside-Outside Attention (WACV 2024, arXiv 2212.00210, sec. 4)"
    )
    published: ClassVar[Mapping[str, Any]] = MappingProxyType({"steps": 50, "guidance_scale": 4.5})
    needs: ClassVar[frozenset[str]] = frozenset({"mask", "source_prompt"})
    takes: ClassVar[frozenset[str]] = frozenset({"blend_words", "region_prompts"})
    rows_formula: ClassVar[str] = "T*V + 2*T*N"

    cross_scale: float = 2.5

    def __post_init__(self) -> None:
        require_number("cross_scale", self.cross_scale, minimum=0.0)

    def keeping(self, more: float) -> ShapeGuided:
        """Less attention to the prompts' new words."""
        return replace(self, cross_scale=max(0.0, round(self.cross_scale * (1.0 - more), 6)))

    @property
    def rule(self) -> EditRule:
        return EditRule(blend=Blend("given"), regions=AttentionRegions(float(self.cross_scale)))

    def missing(self, inputs: EditInputs, source_prompt: str) -> tuple[str, ...]:
        """A mask; a source prompt only if the source's region prompts do not stand for it."""
        lacks = super().missing(inputs, source_prompt)
        prompts = self.region_prompts(source_prompt, "", inputs)
        if prompts.source_inside.strip() and prompts.source_outside.strip():
            lacks = tuple(each for each in lacks if each != "source_prompt")
        return lacks

    def region_prompts(
        self, source_prompt: str, target_prompt: str, inputs: EditInputs
    ) -> RegionPrompts:
        given = inputs.region_prompts or RegionPrompts()
        source, target = inputs.blend_words or (source_prompt, target_prompt)
        outside = given.source_outside if given.source_outside.strip() else source_prompt
        return given.or_else(RegionPrompts(source, outside, target, outside))

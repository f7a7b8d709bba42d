"""InstructPix2Pix: a UNet that sees the source, and reads what is to be changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fpe_core.editors.method import EditMethod, require_choice
from fpe_core.injection import SAMPLERS, EditRule, Start
from fpe_core.layer_rules import require_number


@dataclass(frozen=True)
class InstructPix2Pix(EditMethod):
    """Guided sampling from noise, with two scales, by a UNet of eight input channels.

    The first four are the noisy latent, the others the source's latent mode, not scaled, or zeros.
    Three rows a step: the instruction with the image, the negative prompt with the image, and the
    negative prompt without it, and eps = e(-, -) + s_T (e(text, image) - e(-, image))
    + s_I (e(-, image) - e(-, -)). s_T is the edits' `guidance_scale`. Two rows if
    `image_guidance_scale` is 1, where the last one cancels out, and one row if both scales are 1 or
    outside the guidance interval.

    The edit's prompt is the instruction ("make it red"). No inversion and no row of the source. The
    noise is the seed's, so that an edit does not depend on its batch.

    Attributes:
        image_guidance_scale: s_I, at least 0: more keeps more of the source.
        sampler: "ddim", without noise between the steps, or the published "euler_ancestral", for
            which 100 steps are published.
    """

    name: ClassVar[str] = "instruct_pix2pix"
    paper: ClassVar[str] = (
        "InstructPix2Pix: Learning to Follow Image Editing Instructions (CVPR 2023, arXiv "
        "2211.09800, eq. 3)"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"seed"})
    prompts: ClassVar[str] = "instruction"
    rows_formula: ClassVar[str] = "3*T*N"

    image_guidance_scale: float = 1.5
    sampler: str = "ddim"

    def __post_init__(self) -> None:
        require_choice("sampler", self.sampler, SAMPLERS)
        require_number("image_guidance_scale", self.image_guidance_scale, minimum=0.0)

    def keeping(self, more: float) -> InstructPix2Pix:
        """More guidance by the source."""
        scale = round(self.image_guidance_scale * (1.0 + more), 6)
        return replace(self, image_guidance_scale=max(0.0, scale))

    @property
    def rule(self) -> EditRule:
        return EditRule(
            start=Start("noise"),
            image_guidance=float(self.image_guidance_scale),
            sampler=self.sampler,
        )

    def to_dict(self) -> dict[str, Any]:
        """Without the sampler if it is DDIM, as before there was another one."""
        values = super().to_dict()
        if self.sampler == "ddim":
            del values["sampler"]
        return values

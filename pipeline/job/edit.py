"""The job file's `edit`: how an edit is made."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias, TypeVar, cast

from pydantic import BeforeValidator, Field, model_validator

from fpe_core import EditParameters, Inside, Proximal
from fpe_core.inside import MOST_PX
from fpe_core.parameters import SKIPPED_FRACTION, SOURCE_GUIDANCE_SCALE
from fpe_core.speed import Speed, at_speed
from pipeline.job.section import Layers, Section, layers_of, tuple_from_list
from pipeline.manifest.edit_inputs import EDIT_MASK, BindingColumn

Pixels: TypeAlias = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]
Size: TypeAlias = Annotated[tuple[Pixels, Pixels], BeforeValidator(tuple_from_list)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
InversionName: TypeAlias = Literal["direct", "negative_prompt", "null_text", "edit_friendly"]
Interval: TypeAlias = Annotated[tuple[Share, Share], BeforeValidator(tuple_from_list)]


class InsideSection(Section):
    """Masks that bind: outside of its mask an edit is its source, pixel for pixel."""

    column: str | None = Field(
        default=None,
        min_length=1,
        description="manifest column with a mask per row, given like images, lossless, of the size "
        "of the upright original; black is kept; null: edit_mask",
    )
    boxes: str | None = Field(
        default=None,
        min_length=1,
        description="instead of masks, a manifest column with a box or a list of boxes per row, as "
        "in annotations.boxes; everything in one of them is edited",
    )
    format: Literal["xywh", "xyxy"] = Field(
        default="xywh", description="how the numbers of these boxes are read"
    )
    feather_px: int = Field(
        default=0,
        ge=0,
        le=MOST_PX,
        description="width of the rim, inside of the mask, in which the edit fades into the source",
    )
    padding_px: int = Field(
        default=0,
        ge=0,
        le=MOST_PX,
        description="how far masks and boxes are grown first, in pixels of the edited image",
    )
    invert: bool = Field(
        default=False, description="true: what is outside of the grown masks is edited"
    )

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if self.column is not None and self.boxes is not None:
            raise ValueError("names masks (column) and boxes; it takes one of them")
        if self.boxes is None and self.format != "xywh":
            raise ValueError("format is that of boxes, and there are none: leave it out")
        return self

    @property
    def binding(self) -> BindingColumn:
        """Where the manifest has the masks."""
        if self.boxes is not None:
            return BindingColumn(boxes=self.boxes, box_format=self.format)
        return BindingColumn(mask=self.column or EDIT_MASK)

    def resolve(self) -> Inside:
        return Inside(self.feather_px, self.padding_px, self.invert)


class ProximalSection(Section):
    """Proximal guidance: only the large differences of the predictions guide an edit."""

    norm: Literal["l0", "l1"] = Field(
        default="l0",
        description="l0: what is above the threshold stays as it is; l1: less the threshold",
    )
    quantile: Share = Field(
        default=0.7, description="of an edit's absolute differences: the threshold"
    )
    pull: Share = Field(
        default=0.0,
        description="how far latents are moved to the source's, late and where nothing guides",
    )

    def resolve(self) -> Proximal:
        return Proximal(self.norm, self.quantile, self.pull)


class EditSection(Section):
    """How an edit is made. Null means: as the checkpoint recommends, at this speed."""

    speed: Speed = Field(
        default="exact",
        description="exact, or an approximation: balanced, fast; if steps and guidance_interval "
        "are null, these change them from what the checkpoint recommends; docs/speed.md has the "
        "cost in quality",
    )
    steps: int | None = Field(
        default=None, ge=1, le=999, description="DDIM steps, of inverting and of sampling"
    )
    guidance_scale: float | None = Field(
        default=None, ge=0, le=100, description="scale of classifier-free guidance; 1: no guidance"
    )
    guidance_interval: Interval | None = Field(
        default=None,
        description="[start, end], as shares of the steps: only steps between them are guided, "
        "which is an approximation; [0, 1]: all steps",
    )
    negative_prompt: str | None = Field(
        default=None,
        description="prompt of the unconditional branch; a manifest column overrides it",
    )
    inversion: InversionName = Field(
        default="direct",
        description="negative_prompt: the prompt of the unconditional branch is the source's; "
        "null_text: its embeddings are optimised for each source, slowly; jobs with one of these "
        "have no negative_prompt of their own; edit_friendly: independent noise at every step, "
        "and its noise maps",
    )
    skipped_fraction: Share | None = Field(
        default=None,
        description="of an edit_friendly inversion, share of the steps, from the first, that are "
        "left out; null: 0.36, as published",
    )
    source_guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="of an edit_friendly inversion, its own scale of guidance; null: 3.5, as "
        "published; 1: no guidance, and half the rows",
    )
    proximal: ProximalSection | None = Field(
        default=None,
        description="only large differences guide an edit; null: all of them",
    )
    layers: Layers | None = Field(
        default=None,
        description="self-attention layers whose maps come from the source: {level: N}, "
        "{max_tokens: N}, {first: a, last: b} or {part: up, first: a}",
    )
    replaced_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the steps, from the first, in which these layers do so",
    )
    size_px: Pixels | Size | None = Field(
        default=None,
        description="side of the square, or [width, height], that sources are fitted to; "
        "multiples of 8",
    )
    inside: InsideSection | None = Field(
        default=None,
        description="masks outside of which nothing changes; null: an edit may change everything",
    )

    @model_validator(mode="after")
    def _check_interval(self) -> Self:
        interval = self.guidance_interval
        if interval is not None and interval[0] >= interval[1]:
            raise ValueError(
                f"guidance_interval must start before it ends, got {list(interval)}; for no "
                "guidance at all set guidance_scale to 1"
            )
        return self

    @classmethod
    def of(
        cls, parameters: EditParameters, speed: Speed, inside: InsideSection | None = None
    ) -> Self:
        """The section with exactly these parameters, whatever a checkpoint recommends.

        `inside`: as it was, since parameters do not say where masks are.
        """
        is_edit_friendly, near = parameters.inversion == "edit_friendly", parameters.proximal
        return cls(
            speed=speed,
            steps=parameters.steps,
            guidance_scale=parameters.guidance_scale,
            guidance_interval=parameters.guidance_interval,
            negative_prompt=parameters.negative_prompt,
            inversion=cast("InversionName", parameters.inversion),
            skipped_fraction=parameters.skipped_fraction if is_edit_friendly else None,
            source_guidance_scale=parameters.source_guidance_scale if is_edit_friendly else None,
            proximal=ProximalSection(**near.to_dict()) if near else None,
            layers=None if parameters.editor else layers_of(parameters.layers),
            replaced_fraction=None if parameters.editor else parameters.replaced_fraction,
            size_px=(parameters.width_px, parameters.height_px),
            inside=inside,
        )

    def resolve(self, recommended: EditParameters) -> EditParameters:
        """The parameters of this section, with null replaced by the checkpoint's recommendation.

        Raises fpe_core.ParameterError for values that do not go together.
        """
        defaults = at_speed(recommended, self.speed)
        layers = defaults.layers if self.layers is None else self.layers.to_rule()
        size = self.size_px
        width_px, height_px = (
            (size, size)
            if isinstance(size, int)
            else (size or (defaults.width_px, defaults.height_px))
        )
        return EditParameters(
            steps=_either(self.steps, defaults.steps),
            guidance_scale=_either(self.guidance_scale, defaults.guidance_scale),
            guidance_interval=_either(self.guidance_interval, defaults.guidance_interval),
            negative_prompt=_either(self.negative_prompt, defaults.negative_prompt),
            inversion=self.inversion,
            editor=defaults.editor,
            layers=layers,
            replaced_fraction=_either(self.replaced_fraction, defaults.replaced_fraction),
            width_px=width_px,
            height_px=height_px,
            inside=None if self.inside is None else self.inside.resolve(),
            skipped_fraction=_either(self.skipped_fraction, SKIPPED_FRACTION),
            source_guidance_scale=_either(self.source_guidance_scale, SOURCE_GUIDANCE_SCALE),
            proximal=None if self.proximal is None else self.proximal.resolve(),
        )


_Value = TypeVar("_Value")


def _either(chosen: _Value | None, recommended: _Value) -> _Value:
    return recommended if chosen is None else chosen

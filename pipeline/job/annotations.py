"""The job file's `annotations`: boxes and masks of sources, which are carried into the edits."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fpe_core.judging.region_verdict import BOX_RULE, MASK_RULE, VerdictRule
from pipeline.job.section import Section

_KEEP = "share of the source's structure in the region that the edit must show to be kept; see "
_REVIEW = (
    "share of the structure below which it is dropped; between the two a person should look at it"
)
_VISIBLE = (
    "share that must lie inside the fitted image to be kept; with less a person should look at "
    "it, with nothing it is dropped"
)


class _VerdictSection(Section):
    keep_at_least: float
    review_at_least: float
    visible_at_least: float = Field(
        default=BOX_RULE.visible_at_least, ge=0, le=1, description=_VISIBLE
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.review_at_least > self.keep_at_least:
            raise ValueError(
                f"review_at_least ({self.review_at_least:g}) must be at most keep_at_least "
                f"({self.keep_at_least:g})"
            )
        return self

    def to_rule(self) -> VerdictRule:
        return VerdictRule(self.keep_at_least, self.review_at_least, self.visible_at_least)


class BoxesSection(_VerdictSection):
    """The manifest's column of boxes, and which boxes are kept."""

    column: str = Field(
        min_length=1,
        description="manifest column with one box per row or a list of boxes, in pixels of the "
        "upright original; objects.bbox is the field bbox of a struct, or list of structs, objects",
    )
    format: Literal["xywh", "xyxy"] = Field(
        default="xywh",
        description="xywh: left, top, width, height, as in COCO; xyxy: left, top, right, bottom",
    )
    keep_at_least: float = Field(
        default=BOX_RULE.keep_at_least,
        ge=0,
        le=1,
        description=f"{_KEEP}fpe_core/scores/regions.py",
    )
    review_at_least: float = Field(
        default=BOX_RULE.review_at_least, ge=0, le=1, description=_REVIEW
    )


class MasksSection(_VerdictSection):
    """The manifest's column of masks, and which masks are kept."""

    column: str = Field(
        min_length=1,
        description="manifest column with one mask per row or a list of masks, given like images "
        "(a URI, or bytes), lossless such as PNG, of the size of the upright original",
    )
    keep_at_least: float = Field(
        default=MASK_RULE.keep_at_least,
        ge=0,
        le=1,
        description=f"{_KEEP}fpe_core/scores/regions.py",
    )
    review_at_least: float = Field(
        default=MASK_RULE.review_at_least, ge=0, le=1, description=_REVIEW
    )


class AnnotationsSection(Section):
    """Boxes and masks of the sources: carried into the edits, each with a verdict."""

    boxes: BoxesSection | None = Field(default=None, description="boxes of objects; null: none")
    masks: MasksSection | None = Field(default=None, description="masks of objects; null: none")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.boxes is None and self.masks is None:
            raise ValueError("names no column: give boxes, masks or both, or leave the section out")
        return self

"""The job file's `annotations`: boxes and masks of the sources, which follow into the edits."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fpe_core.judging.region_verdict import BOX_RULE, MASK_RULE, VerdictRule
from pipeline.job.section import Section

_KEEP = "structure of the source that the edit shows there, from which on it is kept; see "
_REVIEW = "structure from which on a person should look at it; with less it is dropped"
_VISIBLE = (
    "share that must lie in the fitted picture to be kept; with less of it a person should look at "
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
    """Where the manifest has boxes, and which are kept."""

    column: str = Field(
        min_length=1,
        description="manifest column with one box a row or a list of them, in pixels of the "
        "upright original; objects.bbox is the field bbox of a struct, or list of structs, objects",
    )
    format: Literal["xywh", "xyxy"] = Field(
        default="xywh",
        description="xywh: left, top, width, height, as COCO has them; xyxy: left, top, right, "
        "bottom",
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
    """Where the manifest has masks, and which are kept."""

    column: str = Field(
        min_length=1,
        description="manifest column with one mask a row or a list of them, given as images are (a "
        "URI, or bytes), PNG or the like, as large as the upright original",
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

"""The job file's `judge.second_tries`: how rejected edits are made again."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from fpe_core import ParameterError
from fpe_core.acceptance import RejectReason
from fpe_core.second_tries import MOST_SECOND_TRIES, Change, Ladder
from pipeline.layers_section import LayerRange, TokenLayers
from pipeline.section import Section

Reason: TypeAlias = Literal["no_change", "structure_lost", "wrong_direction", "off_target"]


class ChangeSection(Section):
    """A rung: what is set instead of the edit's own."""

    replaced_fraction: float | None = Field(
        default=None, ge=0, le=1, description="share of the steps that take the source's maps"
    )
    layers: TokenLayers | LayerRange | None = Field(
        default=None, description="{max_tokens: N} or {first: a, last: b}"
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="classifier-free guidance; that of edits of synthetic sources stays",
    )

    @model_validator(mode="after")
    def _check_change(self) -> Self:
        try:
            self.to_change()
        except ParameterError as error:
            raise ValueError(str(error)) from error
        return self

    def to_change(self) -> Change:
        return Change(
            replaced_fraction=self.replaced_fraction,
            layers=None if self.layers is None else self.layers.to_rule(),
            guidance_scale=self.guidance_scale,
        )


class SecondTriesSection(Section):
    """Further tries of a rejected edit, from the same inversion."""

    most: int = Field(
        default=2, ge=1, le=MOST_SECOND_TRIES, description="further tries of an edit at most"
    )
    ladder: dict[Reason, list[ChangeSection]] | None = Field(
        default=None,
        description="changes by the reason of the rejection, in the order in which they are tried; "
        "null: no_change asks for less replacement, structure_lost for more, see "
        "fpe_core/second_tries.py",
    )

    def to_ladder(self) -> Ladder:
        if self.ladder is None:
            return Ladder(most=self.most)
        return Ladder(
            {
                RejectReason(reason): tuple(change.to_change() for change in changes)
                for reason, changes in self.ladder.items()
            },
            self.most,
        )

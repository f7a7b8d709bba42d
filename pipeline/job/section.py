"""The base of all sections of a job file: strict, frozen, without unknown keys. And the two ways to
name self-attention layers, which several sections share.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fpe_core import LayersByRange, LayersByTokens


class Section(BaseModel):
    """A part of the job file. Nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def tuple_from_list(value: object) -> object:
    """Converts a list, as YAML has it, to the tuple that a frozen model needs."""
    return tuple(value) if isinstance(value, list) else value


class TokenLayers(Section):
    """The self-attention layers with at most this many tokens."""

    max_tokens: int = Field(
        ge=0, description="1024 means 32x32 latent positions: layers 3-13 at 512 px"
    )

    def to_rule(self) -> LayersByTokens:
        return LayersByTokens(max_tokens=self.max_tokens)


class LayerRange(Section):
    """The self-attention layers first..last, counted from 1 in execution order."""

    first: int = Field(ge=1, description="first replaced layer, counted from 1")
    last: int = Field(ge=1, description="last replaced layer, included")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last ({self.last}) must be >= first ({self.first})")
        return self

    def to_rule(self) -> LayersByRange:
        return LayersByRange(first=self.first, last=self.last)

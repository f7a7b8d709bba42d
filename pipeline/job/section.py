"""The base of all sections of a job file: strict, frozen, without unknown keys. And the two ways to
name self-attention layers, which several sections share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fpe_core import LayersByRange, LayersByTokens

_SURROGATE = re.compile("[\ud800-\udfff]")


class Section(BaseModel):
    """A part of the job file. Nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        """Refuses text that no file, id or request can hold: with half of a surrogate pair."""
        if found := _unencodable(value):
            where, text = found
            half = _SURROGATE.search(text)
            assert half is not None
            raise ValueError(
                f"{where}this text cannot be written as UTF-8: character {half.start() + 1} is "
                f"{ascii(half[0])[1:-1]}, half of a surrogate pair or a byte that is not UTF-8; "
                "write the character itself"
            )
        return value


def _unencodable(value: object, where: str = "") -> tuple[str, str] | None:
    """The first text in a value that has no encoding, and its place inside the value.

    Sections inside have checked their own.
    """
    if isinstance(value, str):
        return (where, value) if _SURROGATE.search(value) else None
    if isinstance(value, Mapping):
        inner = [("a key: ", key) for key in value]
        inner += [(f"under {key!a}: ", each) for key, each in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = [(f"item {number}: ", each) for number, each in enumerate(value, start=1)]
    else:
        return None
    return next((found for at, each in inner if (found := _unencodable(each, where + at))), None)


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

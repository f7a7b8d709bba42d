"""The base of all sections of a job file: strict, frozen, without unknown keys. And the ways to
name self-attention layers, which several sections share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fpe_core import LayersByLevel, LayersByPart, LayersByRange, LayersByTokens
from fpe_core.layer_rules import LayerRule

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


class LevelLayers(Section):
    """The self-attention layers where the latent grid is reduced by this much or more."""

    level: int = Field(
        ge=1, description="1, 2, 4 or 8: 2 means layers 3-13 of Stable Diffusion 1.x at every size"
    )

    @field_validator("level")
    @classmethod
    def _check_power(cls, level: int) -> int:
        if level & (level - 1):
            raise ValueError(f"level must be a power of two (1, 2, 4, 8), got {level}")
        return level

    def to_rule(self) -> LayersByLevel:
        return LayersByLevel(level=self.level)


class PartLayers(Section):
    """The self-attention layers of one part of the network, first..last, counted from 1."""

    part: Literal["down", "middle", "up"] = Field(description="the part of the network")
    first: int = Field(default=1, ge=1, description="first layer of the part, counted from 1")
    last: int | None = Field(default=None, ge=1, description="last one, included; null: the last")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.last is not None and self.last < self.first:
            raise ValueError(f"last ({self.last}) must be >= first ({self.first})")
        return self

    def to_rule(self) -> LayersByPart:
        return LayersByPart(part=self.part, first=self.first, last=self.last)


Layers = LevelLayers | TokenLayers | LayerRange | PartLayers
"""What a key that names layers takes."""


def layers_of(rule: LayerRule) -> Layers:
    """The section whose `to_rule` gives this rule."""
    if isinstance(rule, LayersByLevel):
        return LevelLayers(level=rule.level)
    if isinstance(rule, LayersByTokens):
        return TokenLayers(max_tokens=rule.max_tokens)
    if isinstance(rule, LayersByRange):
        return LayerRange(first=rule.first, last=rule.last)
    return PartLayers.model_validate(rule.to_dict())

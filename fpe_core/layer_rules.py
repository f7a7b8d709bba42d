"""Rules that name attention layers of a UNet: by tokens, by number, by level, by part.

Layers are counted from 1 in order of execution: going down, in the middle, going up. Stable
Diffusion 1.x has sixteen self-attentions, each followed by its cross-attention: 1-6 going down, 7
in the middle, 8-16 going up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fpe_core.errors import ParameterError

PARTS = ("down", "middle", "up")
"""The parts of a UNet, in order of execution."""


@dataclass(frozen=True)
class LayersByTokens:
    """The self-attention layers that see at most `max_tokens` latent positions.

    The rule of the authors' code (tokens <= 32 * 32), which at 512 px selects layers 3-13.
    A token count depends on the resolution: at 256 px the same rule selects all sixteen.
    """

    max_tokens: int = 1024

    def __post_init__(self) -> None:
        require_integer("layers.max_tokens", self.max_tokens, minimum=0)

    def __str__(self) -> str:
        return f"tokens<={self.max_tokens}"

    def to_dict(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens}


@dataclass(frozen=True)
class LayersByRange:
    """Layers `first` to `last`: from 1, inclusive, in order of execution (the paper's)."""

    first: int
    last: int

    def __post_init__(self) -> None:
        require_integer("layers.first", self.first, minimum=1)
        require_integer("layers.last", self.last, minimum=1)
        if self.last < self.first:
            raise ParameterError(
                f"layers.last must be >= layers.first ({self.first}), got {self.last}"
            )

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def to_dict(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last}


@dataclass(frozen=True)
class LayersByLevel:
    """The layers where the latent grid is reduced by `level` or more in each direction.

    Level 1 is the grid of the latent itself; Stable Diffusion has levels 1, 2, 4 and 8. Level 2
    selects layers 3-13 of Stable Diffusion 1.x at every resolution, as 1024 tokens do at 512 px.
    """

    level: int = 2

    def __post_init__(self) -> None:
        require_integer("layers.level", self.level, minimum=1)
        if self.level & (self.level - 1):
            raise ParameterError(
                f"layers.level must be a power of two (1, 2, 4, 8, ...), got {self.level}"
            )

    def __str__(self) -> str:
        return f"level>={self.level}"

    def to_dict(self) -> dict[str, Any]:
        return {"level": self.level}


@dataclass(frozen=True)
class LayersByPart:
    """The layers of one part of the UNet, from its `first` to its `last`, counted from 1.

    Attributes:
        part: one of `PARTS`.
        last: None for the last layer of the part.
    """

    part: str
    first: int = 1
    last: int | None = None

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ParameterError(f"layers.part must be one of {', '.join(PARTS)}: {self.part!r}")
        require_integer("layers.first", self.first, minimum=1)
        if self.last is not None:
            require_integer("layers.last", self.last, minimum=self.first)

    def __str__(self) -> str:
        return f"{self.part} {self.first}-{'' if self.last is None else self.last}"

    def to_dict(self) -> dict[str, Any]:
        last = {} if self.last is None else {"last": self.last}
        return {"part": self.part, "first": self.first, **last}


def require_last(rule: LayersByRange, layers: int) -> None:
    """Raises ParameterError if a range reaches past the last of so many layers."""
    if rule.last > layers:
        raise ParameterError(
            f"layers.last must be at most {layers}, the number of self-attention layers of this "
            f"checkpoint, got {rule.last}"
        )


LayerRule = LayersByTokens | LayersByRange | LayersByLevel | LayersByPart


def layer_rule_from_dict(values: Mapping[str, Any]) -> LayerRule:
    """The rule whose `to_dict` this is, such as `{"level": 2}`. Raises ParameterError."""
    keys = set(values)
    if keys == {"max_tokens"}:
        return LayersByTokens(**values)
    if keys == {"first", "last"}:
        return LayersByRange(**values)
    if keys == {"level"}:
        return LayersByLevel(**values)
    if "part" in keys and keys <= {"part", "first", "last"}:
        return LayersByPart(**values)
    raise ParameterError(
        "layers must be {level: N}, {max_tokens: N}, {first: A, last: B} or {part: up, first: A, "
        f"last: B}}, got {dict(values)!r}"
    )


def layer_rule_from_text(text: str) -> LayerRule:
    """The rule that `str(rule)` describes. Raises ParameterError."""
    if match := re.fullmatch(r"tokens<=(\d+)", text):
        return LayersByTokens(int(match[1]))
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        return LayersByRange(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"level>=(\d+)", text):
        return LayersByLevel(int(match[1]))
    if match := re.fullmatch(r"(\w+) (\d+)-(\d*)", text):
        return LayersByPart(match[1], int(match[2]), int(match[3]) if match[3] else None)
    raise ParameterError(
        f"{text!r} is not a layer rule; expected level>=2, tokens<=1024, 4-14 or up 2-"
    )


def require_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> None:
    """Raises ParameterError, which names the value, unless it is a whole number in the range."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ParameterError(f"{name} must be a whole number, got {value!r}")
    _require_range(name, value, minimum, maximum)


def require_number(name: str, value: object, minimum: float, maximum: float | None = None) -> None:
    """Raises ParameterError, which names the value, unless it is a finite number in the range."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ParameterError(f"{name} must be a finite number, got {value!r}")
    _require_range(name, value, minimum, maximum)


def _require_range(name: str, value: float, minimum: float, maximum: float | None) -> None:
    if value < minimum or (maximum is not None and value > maximum):
        allowed = f">= {minimum:g}" if maximum is None else f"{minimum:g} to {maximum:g}"
        raise ParameterError(f"{name} must be {allowed}, got {value!r}")

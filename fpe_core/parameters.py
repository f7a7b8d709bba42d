"""The parameters of an edit: one frozen value, checked when it is created."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fpe_core.errors import ParameterError

_MOST_STEPS = 999  # the first of 1,000 training timesteps is never sampled (steps_offset 1)
EVERY_STEP = (0.0, 1.0)
"""The guidance interval of ordinary edits."""


@dataclass(frozen=True)
class LayersByTokens:
    """Replace the self-attention layers that see at most `max_tokens` latent positions.

    The rule of the authors' code (tokens <= 32 * 32), which at 512 px selects layers 3-13.
    A token count depends on the resolution: at 256 px the same rule selects all sixteen.
    """

    max_tokens: int = 1024

    def __post_init__(self) -> None:
        _require_integer("layers.max_tokens", self.max_tokens, minimum=0)

    def __str__(self) -> str:
        return f"tokens<={self.max_tokens}"


@dataclass(frozen=True)
class LayersByRange:
    """Replace layers `first` to `last`: from 1, inclusive, in order of execution (the paper's)."""

    first: int
    last: int

    def __post_init__(self) -> None:
        _require_integer("layers.first", self.first, minimum=1)
        _require_integer("layers.last", self.last, minimum=1)
        if self.last < self.first:
            raise ParameterError(
                f"layers.last must be >= layers.first ({self.first}), got {self.last}"
            )

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


LayerRule = LayersByTokens | LayersByRange


@dataclass(frozen=True)
class EditParameters:
    """Parameters of Free-Prompt-Editing; the defaults are the paper's (arXiv 2403.03431).

    Attributes:
        steps: DDIM steps of the inversion and of the edit alike, 1..999.
        guidance_scale: classifier-free guidance of the edit, >= 0; 1 means no guidance. The
            inversion is never guided.
        negative_prompt: text of the unconditional row.
        layers: which self-attention layers take the source's map.
        replaced_fraction: share of the steps, counted from the noisy end, in which they do, 0..1.
        guidance_interval: (start, end), shares of the steps counted from the noisy end, 0..1: step
            i of T is guided if start <= i / T < end. Any other step has scale 1, and so no
            unconditional row. (0, 1) guides every step. An approximation that saves rows
            (Kynkäänniemi et al. 2024, arXiv 2404.07724, who give the interval in noise levels).
        width_px, height_px: size of the edited image, multiples of 8.
        replace_cross_attention: also take the source's cross-attention maps in those layers. Not
            meant for editing: it is the paper's counter-example (sec. 3), kept to measure its
            findings.
    """

    steps: int = 50
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    layers: LayerRule = field(default_factory=LayersByTokens)
    replaced_fraction: float = 0.8
    width_px: int = 512
    height_px: int = 512
    guidance_interval: tuple[float, float] = EVERY_STEP
    replace_cross_attention: bool = False

    def __post_init__(self) -> None:
        _require_integer("steps", self.steps, minimum=1, maximum=_MOST_STEPS)
        _require_number("guidance_scale", self.guidance_scale, minimum=0.0)
        _require_number("replaced_fraction", self.replaced_fraction, minimum=0.0, maximum=1.0)
        _require_interval("guidance_interval", self.guidance_interval)
        if not isinstance(self.negative_prompt, str):
            raise ParameterError(f"negative_prompt must be text, got {self.negative_prompt!r}")
        if not isinstance(self.replace_cross_attention, bool):
            raise ParameterError(
                "replace_cross_attention must be true or false, got "
                f"{self.replace_cross_attention!r}"
            )
        if not isinstance(self.layers, LayersByTokens | LayersByRange):
            raise ParameterError(
                f"layers must be LayersByTokens or LayersByRange, got {self.layers!r}"
            )
        for name in ("width_px", "height_px"):
            size_px = getattr(self, name)
            _require_integer(name, size_px, minimum=8)
            if size_px % 8:
                raise ParameterError(f"{name} must be a multiple of 8, got {size_px}")

    @property
    def replaced_steps(self) -> int:
        """How many steps replace attention maps, counted from the noisy end."""
        return int(self.steps * self.replaced_fraction + 1e-9)

    @property
    def guided_steps(self) -> range:
        """The steps that need an unconditional row, from 0 at the noisy end.

        Empty at scale 1, where guidance changes nothing, and if no step is in the interval.
        """
        if self.guidance_scale == 1.0:
            return range(0)
        first, end = (math.ceil(self.steps * share - 1e-9) for share in self.guidance_interval)
        return range(first, end)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for ids and records: equal parameters give equal dictionaries."""
        layers: dict[str, int]
        if isinstance(self.layers, LayersByTokens):
            layers = {"max_tokens": self.layers.max_tokens}
        else:
            layers = {"first": self.layers.first, "last": self.layers.last}
        values: dict[str, Any] = {
            "steps": self.steps,
            "guidance_scale": float(self.guidance_scale),
            "negative_prompt": self.negative_prompt,
            "layers": layers,
            "replaced_fraction": float(self.replaced_fraction),
            "width_px": self.width_px,
            "height_px": self.height_px,
        }
        # Parameters added later are only written if they are used, so that older records and ids
        # stay the same.
        if self.guidance_interval != EVERY_STEP:
            values["guidance_interval"] = [float(share) for share in self.guidance_interval]
        if self.replace_cross_attention:
            values["replace_cross_attention"] = True
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EditParameters:
        """Reads back what `to_dict` wrote; keys that are absent keep their defaults."""
        known = dict(values)
        if "layers" in known:
            known["layers"] = layer_rule_from_dict(known["layers"])
        if isinstance(known.get("guidance_interval"), list):
            known["guidance_interval"] = tuple(known["guidance_interval"])
        allowed = [field.name for field in fields(cls)]
        if unknown := sorted(set(known) - set(allowed)):
            raise ParameterError(
                f"unknown edit parameter {', '.join(unknown)}; allowed: {', '.join(allowed)}"
            )
        return cls(**known)


def layer_rule_from_dict(values: Mapping[str, int]) -> LayerRule:
    """`{"max_tokens": 1024}` or `{"first": 4, "last": 14}` to the rule it names."""
    if set(values) == {"max_tokens"}:
        return LayersByTokens(values["max_tokens"])
    if set(values) == {"first", "last"}:
        return LayersByRange(values["first"], values["last"])
    raise ParameterError(
        f"layers must be {{max_tokens: N}} or {{first: A, last: B}}, got {dict(values)!r}"
    )


def layer_rule_from_text(text: str) -> LayerRule:
    """The rule that `str(rule)` describes. Raises ParameterError."""
    if match := re.fullmatch(r"tokens<=(\d+)", text):
        return LayersByTokens(int(match[1]))
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        return LayersByRange(int(match[1]), int(match[2]))
    raise ParameterError(f"{text!r} is not a layer rule; expected tokens<=1024 or 4-14")


def _require_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ParameterError(f"{name} must be a whole number, got {value!r}")
    _require_range(name, value, minimum, maximum)


def _require_number(name: str, value: object, minimum: float, maximum: float | None = None) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ParameterError(f"{name} must be a finite number, got {value!r}")
    _require_range(name, value, minimum, maximum)


def _require_interval(name: str, value: object) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ParameterError(f"{name} must be two numbers, its start and its end, got {value!r}")
    for place, share in zip(("start", "end"), value, strict=True):
        _require_number(f"{name}'s {place}", share, minimum=0.0, maximum=1.0)
    if value[0] >= value[1]:
        raise ParameterError(
            f"{name} must start before it ends, got {list(value)}; for no guidance at all set "
            "guidance_scale to 1"
        )


def _require_range(name: str, value: float, minimum: float, maximum: float | None) -> None:
    if value < minimum or (maximum is not None and value > maximum):
        allowed = f">= {minimum:g}" if maximum is None else f"{minimum:g} to {maximum:g}"
        raise ParameterError(f"{name} must be {allowed}, got {value!r}")

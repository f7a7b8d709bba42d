"""Approximate ways to edit, by name: less work for an edit that is not quite the same.

    parameters = at_speed(checkpoint.default_parameters, "balanced")

Nothing else in this package approximates: every other saving gives the same edit as the full
procedure. `fpe bench presets` measures what each preset costs in quality and gains in speed;
docs/speed.md has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from fpe_core.errors import ParameterError
from fpe_core.parameters import EVERY_STEP, EditParameters

Speed: TypeAlias = Literal["exact", "balanced", "fast"]
SPEEDS: tuple[Speed, ...] = get_args(Speed)


@dataclass(frozen=True)
class SpeedPreset:
    """What a speed changes, relative to the parameters that a checkpoint recommends.

    Attributes:
        steps_share: share of the recommended steps to take; rounded to at least one step.
        guidance_interval: as in `EditParameters`.
    """

    steps_share: float = 1.0
    guidance_interval: tuple[float, float] = EVERY_STEP

    def applied_to(self, recommended: EditParameters) -> EditParameters:
        return replace(
            recommended,
            steps=max(1, round(self.steps_share * recommended.steps)),
            guidance_interval=self.guidance_interval,
        )


SPEED_PRESETS: Mapping[Speed, SpeedPreset] = MappingProxyType(
    {
        "balanced": SpeedPreset(steps_share=0.6),
        "fast": SpeedPreset(steps_share=0.4),
    }
)


def at_speed(recommended: EditParameters, speed: Speed) -> EditParameters:
    """The recommended parameters, changed by a speed; "exact" changes nothing.

    Raises ParameterError for a speed that does not exist.
    """
    if speed not in SPEEDS:
        raise ParameterError(f"no speed {speed!r}; choose one of {', '.join(SPEEDS)}")
    return SPEED_PRESETS[speed].applied_to(recommended) if speed in SPEED_PRESETS else recommended


def approximation_of(parameters: EditParameters, speed: Speed) -> str:
    """What edits with these parameters approximate, as text for people; "" for nothing.

    `speed`: what the parameters were derived from; single ones may have been set since.
    """
    start, end = parameters.guidance_interval
    limited = parameters.guidance_interval != EVERY_STEP
    guided = f"guided from {start:g} to {end:g} of them" if limited else "all guided"
    if speed in SPEED_PRESETS:
        return f"{speed}: {parameters.steps} steps, {guided}"
    return f"{parameters.steps} steps, {guided}" if limited else ""

"""Approximate ways to edit, by name: less work for an edit that is not quite the same.

    parameters = at_speed(checkpoint.default_parameters, "balanced")

Nothing else in this package approximates: every other saving gives the edit of the whole procedure.
What each preset costs in quality and gives in speed is measured by `fpe bench presets`;
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
class Preset:
    """What a speed changes; relative to what a checkpoint recommends, so that it suits any.

    Attributes:
        steps_share: of the recommended steps, rounded, at least one.
        guidance_interval: as `EditParameters` has it.
    """

    steps_share: float = 1.0
    guidance_interval: tuple[float, float] = EVERY_STEP

    def applied_to(self, recommended: EditParameters) -> EditParameters:
        return replace(
            recommended,
            steps=max(1, round(self.steps_share * recommended.steps)),
            guidance_interval=self.guidance_interval,
        )


PRESETS: Mapping[Speed, Preset] = MappingProxyType(
    {
        "balanced": Preset(steps_share=0.6),
        "fast": Preset(steps_share=0.4),
    }
)


def at_speed(recommended: EditParameters, speed: Speed) -> EditParameters:
    """The recommendation as a speed changes it; "exact" leaves it as it is.

    Raises ParameterError for a speed that does not exist.
    """
    if speed not in SPEEDS:
        raise ParameterError(f"no speed {speed!r}; choose one of {', '.join(SPEEDS)}")
    return PRESETS[speed].applied_to(recommended) if speed in PRESETS else recommended


def approximation_of(parameters: EditParameters, speed: Speed) -> str:
    """For people, what edits with these parameters leave out; "" where they leave out nothing.

    `speed` is where the parameters began; single ones may have been set since.
    """
    start, end = parameters.guidance_interval
    limited = parameters.guidance_interval != EVERY_STEP
    guided = f"guided from {start:g} to {end:g} of them" if limited else "all guided"
    if speed in PRESETS:
        return f"{speed}: {parameters.steps} steps, {guided}"
    return f"{parameters.steps} steps, {guided}" if limited else ""

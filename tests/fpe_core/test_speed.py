"""The approximate presets: chosen by name, relative, and off by default."""

from __future__ import annotations

import pytest

from fpe_core import EditParameters, ParameterError
from fpe_core.parameters import EVERY_STEP
from fpe_core.speed import SPEED_PRESETS, SPEEDS, SpeedPreset, approximation_of, at_speed
from pipeline.plan.group_shape import GroupShape


def test_exact_is_the_recommendation_itself() -> None:
    recommended = EditParameters(steps=25)
    assert at_speed(recommended, "exact") is recommended
    assert set(SPEEDS) == {"exact", *SPEED_PRESETS}


@pytest.mark.parametrize("steps", [1, 2, 25, 50, 999])
def test_every_speed_does_less_than_the_one_before(steps: int) -> None:
    """Of models that recommend few steps and many; one step cannot become fewer."""
    work = [
        GroupShape.of(at_speed(EditParameters(steps=steps), speed), 1, synthetic=False).unet_rows
        for speed in ("exact", "balanced", "fast")
    ]
    assert sorted(work, reverse=True) == work
    if steps >= 25:
        assert work[0] > work[1] > work[2]


def test_a_preset_keeps_all_that_it_does_not_name() -> None:
    recommended = EditParameters(steps=40, guidance_scale=3.0, negative_prompt="blurred")
    made = SpeedPreset(steps_share=0.5, guidance_interval=(0.0, 0.7)).applied_to(recommended)
    assert (made.steps, made.guidance_interval) == (20, (0.0, 0.7))
    assert (made.guidance_scale, made.negative_prompt, made.layers) == (
        3.0,
        "blurred",
        recommended.layers,
    )


def test_what_is_left_out_is_said() -> None:
    exact = EditParameters(steps=20)
    limited = EditParameters(steps=20, guidance_interval=(0.25, 1.0))
    assert approximation_of(exact, "exact") == ""
    assert approximation_of(exact, "fast") == "fast: 20 steps, all guided"
    assert approximation_of(limited, "exact") == "20 steps, guided from 0.25 to 1 of them"
    assert exact.guidance_interval == EVERY_STEP


def test_an_unknown_speed_is_refused() -> None:
    with pytest.raises(ParameterError, match="no speed 'warp'; choose one of exact"):
        at_speed(EditParameters(), "warp")  # type: ignore[arg-type]

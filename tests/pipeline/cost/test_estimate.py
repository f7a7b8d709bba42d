"""Estimates: rows by the planner's formula, seconds by a probe, and what each changed key does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpe_core import EditParameters
from fpe_core.speed import at_speed
from pipeline.cost.estimate import PlannedWork, estimate, key_effects
from pipeline.cost.probe import CallTimes, ImageFileCost, Probe, ProbeKey
from pipeline.plan.group_shape import GroupShape

PARAMETERS = EditParameters(steps=20, replaced_fraction=0.8, guidance_scale=6.0)
KEY = ProbeKey("f" * 32, 512, 512, "float32", "tokens<=1024", "")
PROBE = Probe(
    key=KEY,
    device="a device",
    device_type="cuda",
    threads=4,
    calls=(
        CallTimes(1, 2, 0.02, 0.01, 0.03, 0.5, 0.25),
        CallTimes(4, 8, 0.01, 0.005, 0.02, 0.4, 0.2),
    ),
    judge_s=0.125,
    fetch_s=0.05,
    load_s=10.0,
    formats={"png": ImageFileCost(0.1, 1000.0, 500.0), "webp": ImageFileCost(0.2, 300.0, 100.0)},
    unet_rows=1,
    date="2026-11-25T00:00:00+00:00",
)


def shape(edits: int, parameters: EditParameters = PARAMETERS) -> GroupShape:
    return GroupShape.of(parameters, edits, synthetic=False)


WORK = PlannedWork(
    shapes={shape(2): 100},
    groups_per_block=4,
    actors=1,
    gpus_per_actor=1,
    image_format="png",
    keep_source=True,
    is_judged=False,
)


def test_seconds_are_rows_and_pictures_times_what_was_measured() -> None:
    found = estimate(WORK, PROBE)
    inversion, source, edit = 20 * 100, 16 * 100, (39 * 2 + 1) * 100
    assert found.unet_rows == inversion + source + edit
    assert found.unet_s == pytest.approx(inversion * 0.01 + source * 0.005 + edit * 0.02)
    assert found.pictures_s == pytest.approx(100 * 0.4 + 200 * 0.2)
    assert found.cpu_io_s == pytest.approx(100 * 0.05 + 300 * 0.1)
    assert found.device_s == pytest.approx(found.unet_s + found.pictures_s)
    assert found.device_hours * 3600 == found.wall_s == pytest.approx(found.device_s)
    assert found.output_bytes == 200 * 1000 + 100 * 500
    assert found.money(3.6) == pytest.approx(found.device_s / 1000)
    on_cpu = estimate(WORK, replace(PROBE, device_type="cpu"))
    assert on_cpu.device_s == pytest.approx(found.device_s + found.cpu_io_s / 4)
    crowded = estimate(replace(WORK, leaves_no_core=True), replace(PROBE, device_type="cpu"))
    assert crowded.device_s == pytest.approx(1.2 * on_cpu.device_s)
    assert estimate(replace(WORK, leaves_no_core=True), PROBE).device_s == found.device_s
    judged = estimate(replace(WORK, is_judged=True), PROBE)
    assert judged.device_s == pytest.approx(found.device_s + 200 * 0.125)


def test_more_workers_take_less_time_and_the_same_device_hours() -> None:
    alone, five = estimate(WORK, PROBE), estimate(replace(WORK, actors=5), PROBE)
    assert five.device_hours == alone.device_hours
    assert five.wall_s == pytest.approx(alone.wall_s / 5)
    # 25 blocks: of four workers one makes seven
    assert estimate(replace(WORK, actors=4), PROBE).wall_s == pytest.approx(alone.wall_s * 7 / 25)


def test_two_workers_on_one_gpu_are_one_device_and_one_on_two_gpus_are_two() -> None:
    alone = estimate(WORK, PROBE)
    shared = estimate(replace(WORK, actors=5, gpus_per_actor=0.5), PROBE)
    assert shared.device_hours == alone.device_hours
    assert shared.wall_s == pytest.approx(alone.wall_s / 5 * 2)
    assert estimate(replace(WORK, gpus_per_actor=2), PROBE).device_hours == 2 * alone.device_hours


@given(edits=st.floats(0.5, 100))
def test_times_of_other_calls_lie_between_those_that_were_measured(edits: float) -> None:
    times, (low, high) = PROBE.times_of(edits), PROBE.calls
    assert high.edit_row_s <= times.edit_row_s <= low.edit_row_s
    if edits in (2, 8):
        assert times == (low if edits == 2 else high)


def rows_if(parameters: EditParameters, edits: int = 2) -> int:
    return 100 * GroupShape.of(parameters, edits, synthetic=False).unet_rows


@given(steps=st.integers(2, 100), thousandths=st.integers(1, 1000))
def test_halves_of_steps_and_of_replacement_are_those_of_the_parameters(
    steps: int, thousandths: int
) -> None:
    parameters = replace(PARAMETERS, steps=steps, replaced_fraction=thousandths / 1000)
    work = replace(WORK, shapes={shape(2, parameters): 100})
    found = {effect.key: effect.estimate.unet_rows for effect in key_effects(work, PROBE)}
    assert found["edit.steps"] == rows_if(replace(parameters, steps=steps // 2))
    if parameters.replaced_steps:
        half = replace(parameters, replaced_fraction=thousandths / 2000)
        assert found["edit.replaced_fraction"] == rows_if(half)


def test_each_changed_key_counts_the_rows_that_a_job_with_that_key_is_planned_with() -> None:
    work = replace(WORK, is_judged=True, other_speeds={"fast": 0.4})
    found = {effect.key: effect for effect in key_effects(work, PROBE)}
    expected = {
        "edit.speed": rows_if(at_speed(PARAMETERS, "fast")),
        "edit.steps": rows_if(replace(PARAMETERS, steps=10)),
        "edit.replaced_fraction": rows_if(replace(PARAMETERS, replaced_fraction=0.4)),
        "edit.guidance_scale": rows_if(replace(PARAMETERS, guidance_scale=1.0)),
        "edit.guidance_interval": rows_if(replace(PARAMETERS, guidance_interval=(0.0, 0.8))),
        "edits of a source": rows_if(PARAMETERS, edits=4),
        "judge.retries": 2 * rows_if(PARAMETERS) - 100 * 20,  # without another inversion
    }
    assert {key: found[key].estimate.unet_rows for key in expected} == expected
    now = estimate(replace(WORK, is_judged=True), PROBE)
    assert found["edit.steps"].estimate.device_s < now.device_s
    assert found["judge"].estimate.device_s == pytest.approx(now.device_s - 200 * 0.125)
    assert found["images.format"].then == "webp"
    assert found["images.format"].estimate.output_bytes == 200 * 300 + 100 * 100
    assert found["images.keep_source"].estimate.output_bytes == 200 * 1000
    for key in ("judge", "images.format", "images.keep_source"):
        assert found[key].estimate.unet_rows == now.unet_rows
    assert all(math.isfinite(effect.estimate.wall_s) for effect in found.values())


def test_keys_that_would_change_nothing_are_left_out() -> None:
    plain = replace(PARAMETERS, guidance_scale=1.0, replaced_fraction=0.0, steps=1)
    work = replace(WORK, shapes={shape(2, plain): 3}, keep_source=False)
    assert [effect.key for effect in key_effects(work, PROBE)] == [
        "edits of a source",
        "images.format",
    ]

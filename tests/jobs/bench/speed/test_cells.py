"""`fpe bench speed`: an arm that fails or is wrong costs its own times, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fpe_core import EditParameters
from jobs.bench.machine import this_machine
from jobs.bench.speed.arms import exact_arms
from jobs.bench.speed.gate import TOLERANCE, agreements
from jobs.bench.speed.instruments import PeakMemory, PhaseClock
from jobs.bench.speed.models import LAYERS, SHAPES, build_random
from jobs.bench.speed.results import Sweep
from jobs.bench.speed.rounds import CellTimer, CellTimes
from jobs.bench.speed.tables import notes, speed_table
from jobs.bench.speed.workload import BenchWorkload, make_workload

STEPS = 3


@dataclass(frozen=True)
class Spoiled:
    """An arm of ours that goes wrong from its `sound`-th call on."""

    arm: Any
    calls: list[int]
    sound: int
    change: Callable[[torch.Tensor], torch.Tensor]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.arm, name)

    def afresh(self) -> Spoiled:
        return self

    def edit(self, workload: BenchWorkload, clock: PhaseClock) -> torch.Tensor:
        self.calls.append(workload.edits)
        latents: torch.Tensor = self.arm.edit(workload, clock)
        return latents if len(self.calls) <= self.sound else self.change(latents)


def sweep_of(times: CellTimes) -> Sweep:
    cell = times.measured[0]
    return Sweep(
        model="micro",
        parameters={},
        gate=(),
        cells=((cell.sources, cell.edits_per_source),),
        measured=times.measured,
        failed=times.failed,
        profiles=(),
        minimal_flops={1: 1.0},
        product_flops_per_s={"float32": 1.0},
    )


def out_of_memory(_latents: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nsecond line")


@pytest.mark.parametrize(
    ("name", "sound", "change", "cause", "lost"),
    [
        ("D", 0, out_of_memory, "OutOfMemoryError: CUDA out of memory.*2 GiB$", {"D", "D again"}),
        ("C", 1, out_of_memory, "OutOfMemoryError", {"C"}),
        ("A", 0, out_of_memory, "OutOfMemoryError", {"A"}),
        ("D", 0, lambda z: z * 1.01, "wrong: an edit is 1.0e-02 from A's", {"D", "D again"}),
        ("D", 0, lambda z: z * float("nan"), "wrong: its latents are not all finite", {"D"}),
    ],
)
def test_an_arm_that_fails_costs_its_own_times(
    name: str, sound: int, change: Any, cause: str, lost: set[str]
) -> None:
    checkpoint = build_random("micro", SHAPES["micro"], torch.device("cpu"))
    arms = [
        Spoiled(arm, [], sound, change) if arm.name == name else arm
        for arm in exact_arms(checkpoint, checkpoint)
    ]
    timer = CellTimer(arms, rounds=1, baseline_edits=1, tolerance=TOLERANCE, profiles=False)
    parameters = EditParameters(steps=STEPS, layers=LAYERS, width_px=32, height_px=32)
    times = timer.time_cell(make_workload(1, 1, parameters))
    ((failed, said),) = [(each.arm, each.cause) for each in times.failed]
    assert failed == name
    assert re.search(cause, said), said
    assert lost.isdisjoint({each.arm for each in times.measured})
    assert len(times.measured) == len([*arms, "D again"]) - (2 if name == "D" else 1)
    sweep = sweep_of(times)
    assert any(said in line for line in notes(sweep, this_machine(checkpoint.device)))
    speed_table(sweep, None)  # without A there is nothing to divide by


def test_all_edits_of_ours_are_compared_and_not_the_first_source_alone() -> None:
    """A made one edit; the second source's is held against C's."""
    sound = torch.ones(2, 4, 2, 2)
    spoiled = sound.clone()
    spoiled[1] *= 1.5
    latents = {"A": sound[:1], "C": sound, "D": spoiled}
    found = agreements(latents, is_exact=True, tolerance=TOLERANCE)
    assert (found["C"].wrong, found["A"].wrong) == ("", "")
    assert found["D"].from_authors == 0
    assert found["D"].wrong == "wrong: an edit is 5.0e-01 from C's, more than 2.0e-03"


def test_a_cells_work_that_was_timed_is_not_timed_again() -> None:
    checkpoint = build_random("micro", SHAPES["micro"], torch.device("cpu"))
    arms = [Spoiled(arm, [], 99, out_of_memory) for arm in exact_arms(checkpoint, checkpoint)]
    timer = CellTimer(arms, rounds=1, baseline_edits=1, tolerance=TOLERANCE, profiles=False)
    parameters = EditParameters(steps=STEPS, layers=LAYERS, width_px=32, height_px=32)
    for sources in (1, 2):
        times = timer.time_cell(make_workload(sources, 1, parameters))
    assert {spoiled.name: len(spoiled.calls) for spoiled in arms} == {
        "A": 2,
        "B": 2,
        "B+": 2,
        "C": 4,
        "D": 6,
    }
    reused = {each.arm: each.timed_in for each in times.measured}
    assert {arm for arm, cell in reused.items() if cell} == {"A", "B", "B+"}
    assert {each.sources for each in times.measured} == {2}
    lines = notes(sweep_of(times), this_machine(checkpoint.device))
    assert any("timed there: A in 1 x 1, B in 1 x 1, B+ in 1 x 1" in line for line in lines)


def test_the_plain_loop_puts_its_processors_on_once_an_edit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = build_random("micro", SHAPES["micro"], torch.device("cpu"))
    plain = exact_arms(checkpoint, checkpoint)[1]
    calls: list[int] = []
    own = type(checkpoint.unet).set_attn_processor

    def counted(self: Any, processor: Any) -> None:
        calls.append(1)
        own(self, processor)

    monkeypatch.setattr(type(checkpoint.unet), "set_attn_processor", counted)
    parameters = EditParameters(steps=5, layers=LAYERS, width_px=32, height_px=32)
    plain.edit(make_workload(1, 1, parameters), PhaseClock(checkpoint.device))
    assert parameters.replaced_steps == 4
    assert len(calls) == 2, "on before the first replaced step, off after the last"


def test_half_precision_is_held_against_d_and_d_against_b() -> None:
    def arms(**distance: float) -> dict[str, str]:
        latents = {name: torch.ones(1, 4, 2, 2) * (1 + own) for name, own in distance.items()}
        found = agreements(latents, is_exact=False, tolerance=TOLERANCE)
        return {name: each.wrong for name, each in found.items() if each.wrong}

    assert arms(A=0.0, B=0.02, C=0.05, D=0.02) == {}
    assert set(arms(A=0.0, B=0.02, C=0.07, D=0.02)) == {"C"}
    assert "D" in arms(A=0.0, B=0.02, C=0.02, D=0.07)
    assert arms(B=0.02, C=0.02, D=0.9) == {}, "without A nothing says how far is too far"


def test_the_peak_does_not_depend_on_what_ran_before() -> None:
    """Four MiB, then eight, then four again beside them: the most at a time is sixteen."""
    mebibyte = 1 << 20
    for _ in range(2):
        memory = PeakMemory(torch.device("cpu"))
        with memory.measuring():
            small = torch.zeros(4 * mebibyte, dtype=torch.uint8)
            large = torch.zeros(8 * mebibyte, dtype=torch.uint8)
            del small
            first, second = (torch.zeros(4 * mebibyte, dtype=torch.uint8) for _ in range(2))
            del large, first, second
        assert memory.bytes == pytest.approx(16 * mebibyte, rel=1e-3)

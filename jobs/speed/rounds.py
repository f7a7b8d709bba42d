"""Runs the arms in turn, several times, and keeps every time."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.speed.arms import Arm
from jobs.speed.clock import PHASES, PhaseClock
from jobs.speed.flops import flop_counter, wait_for
from jobs.speed.gate import farthest
from jobs.speed.memory import PeakMemory
from jobs.speed.workload import Workload

REST = "rest"
"""What is left of the time beside `PHASES`: scheduler, pictures, Python, waiting."""

_TWICE = "D"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One arm, once.

    Attributes:
        wall_s: from the call to everything done.
        phase_s: the part of it inside the networks, by `PHASES`, and `REST`.
        unet_rows: rows that entered the UNet, seen by a hook.
        peak_bytes: see `PeakMemory`.
    """

    wall_s: float
    phase_s: dict[str, float]
    unet_rows: int
    peak_bytes: int | None


@dataclass(frozen=True)
class Measured:
    """One arm on one workload.

    Attributes:
        arm, title: which.
        dtype: the networks' type, as torch writes it without "torch.".
        sources, edits_per_source: the cell of the sweep.
        edits: that one run really made: arms that share nothing make a few and not all.
        runs: one per round, in order.
        first_s: the first run, before the rounds: warm-up, for a compiled arm with compilation.
        flops: run in all networks per edit, counted in the first run; of D for a compiled arm.
        distance: of the edit farthest from A's, as a share of its latent's norm, in this dtype.
    """

    arm: str
    title: str
    dtype: str
    sources: int
    edits_per_source: int
    edits: int
    runs: tuple[Run, ...]
    first_s: float
    flops: float
    distance: float

    @property
    def wall_s(self) -> float:
        """Median of the rounds."""
        return statistics.median(run.wall_s for run in self.runs)

    @property
    def edits_per_s(self) -> float:
        return self.edits / self.wall_s

    @property
    def spread(self) -> float:
        """Slowest less fastest round, as a share of the median."""
        times = [run.wall_s for run in self.runs]
        return (max(times) - min(times)) / self.wall_s

    @property
    def rows_per_edit(self) -> float:
        return self.runs[0].unet_rows / self.edits

    @property
    def phase_ms(self) -> dict[str, float]:
        """Milliseconds per edit by phase, medians of the rounds."""
        return {
            phase: 1000 * statistics.median(run.phase_s[phase] for run in self.runs) / self.edits
            for phase in (*PHASES, REST)
        }

    @property
    def peak_bytes(self) -> int | None:
        peaks = [run.peak_bytes for run in self.runs if run.peak_bytes is not None]
        return max(peaks, default=None)


def measure_cell(
    arms: Sequence[Arm], workload: Workload, rounds: int, baseline_edits: int
) -> list[Measured]:
    """All arms on one workload, A first, and D a second time as "D again": the noise floor.

    Every arm is run once before the rounds. In a round every arm runs once, and each round begins
    with another one.

    Args:
        rounds: how many times each arm is timed.
        baseline_edits: most edits of the arms that share nothing. They make one after the other,
            so that their time per edit does not depend on how many there are.
    """
    torch._dynamo.reset()  # compilation is paid, and told, once per cell
    arms = [arm.afresh() for arm in arms]
    twice = [arm for arm in arms if arm.name == _TWICE]
    entries = [(arm.name, arm) for arm in arms] + [(f"{arm.name} again", arm) for arm in twice]
    parts = {name: _part(arm, workload, baseline_edits) for name, arm in entries}
    first = {name: _first(arm, parts[name]) for name, arm in entries if name == arm.name}
    runs: dict[str, list[Run]] = {name: [] for name, _ in entries}
    for number in range(rounds):
        start = number % len(entries)
        for name, arm in entries[start:] + entries[:start]:
            runs[name].append(_run(arm, parts[name]))
        _log.info(
            "%d sources, %d edits of each: round %d of %d",
            len(workload.images),
            len(workload.target_prompts[0]),
            number + 1,
            rounds,
        )
    expected = first[arms[0].name][0]
    return [
        Measured(
            arm=name,
            title=arm.title if name == arm.name else f"{arm.title} (again)",
            dtype=str(arm.checkpoint.dtype).removeprefix("torch."),
            sources=len(workload.images),
            edits_per_source=len(workload.target_prompts[0]),
            edits=parts[name].edits,
            runs=tuple(runs[name]),
            first_s=first[arm.name][1],
            flops=first[_TWICE if arm.is_compiled else arm.name][2],
            distance=_distance(first[arm.name][0], expected),
        )
        for name, arm in entries
    ]


def _part(arm: Arm, workload: Workload, baseline_edits: int) -> Workload:
    if arm.shares == "everything":
        return workload
    if arm.shares == "inversion":
        return workload.cut(1, len(workload.target_prompts[0]))
    return workload.cut(1, baseline_edits)


def _first(arm: Arm, workload: Workload) -> tuple[Tensor, float, float]:
    """Final latents, seconds, and FLOPs per edit, which a compiled graph does not show."""
    device = arm.checkpoint.device
    wait_for(device)
    start = time.perf_counter()
    if arm.is_compiled:
        latents, flops = arm.edit(workload, PhaseClock(device)), 0
    else:
        with flop_counter() as counter:
            latents = arm.edit(workload, PhaseClock(device))
        flops = counter.get_total_flops()
    wait_for(device)
    return latents, time.perf_counter() - start, flops / workload.edits


def _run(arm: Arm, workload: Workload) -> Run:
    device = arm.checkpoint.device
    clock, memory = PhaseClock(device), PeakMemory(device)
    with clock.watching(arm.networks), memory.measuring():
        wait_for(device)
        start = time.perf_counter()
        arm.edit(workload, clock)
        wait_for(device)
        wall_s = time.perf_counter() - start
    phase_s = clock.seconds()
    return Run(wall_s, {**phase_s, REST: wall_s - sum(phase_s.values())}, clock.rows, memory.bytes)


def _distance(latents: Tensor, expected: Tensor) -> float:
    """Of the edits of the first source that both made."""
    both = min(len(latents), len(expected))
    return farthest(latents[:both], expected[:both])

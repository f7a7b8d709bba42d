"""Times the arms of a cell in turn, in several rounds."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from fpe_core.unet.call import UNetCall
from jobs.bench.machine import wait_for
from jobs.bench.speed.arms import OURS, Arm
from jobs.bench.speed.device_time import DeviceTime, profiled
from jobs.bench.speed.flops import flop_counter
from jobs.bench.speed.gate import agreements, exact_float32
from jobs.bench.speed.instruments import PeakMemory, PhaseClock
from jobs.bench.speed.results import REST, Failed, Measured, Run
from jobs.bench.speed.workload import BenchWorkload

_TWICE = "D"
_AGAIN = f"{_TWICE} again"
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellTimes:
    """The results of all arms on one workload.

    Attributes:
        measured: in the arms' order, "D again" last.
        failed: arms that have no times, with the reason.
        profile: where the time of our fastest arm goes; None if there is no profile.
    """

    measured: tuple[Measured, ...]
    failed: tuple[Failed, ...]
    profile: DeviceTime | None


@dataclass(frozen=True)
class _First:
    """An arm's first run. `flops` is per edit."""

    latents: Tensor
    wall_s: float
    flops: float
    peak_bytes: int


class CellTimer:
    """Times the cells of one model, one after the other.

    An arm that does the same work in two cells is timed only in the first of them. A and B make the
    same few edits in every cell, and B+ does so in cells with the same number of edits per source.
    """

    def __init__(
        self,
        arms: Iterable[Arm],
        *,
        rounds: int,
        baseline_edits: int,
        tolerance: float,
        profiles: bool,
    ) -> None:
        """
        Args:
            arms: the arms, A first.
            rounds: how many times each arm is timed.
            baseline_edits: most edits per run of the arms that share nothing. Their time per edit
                does not depend on the number, because they make one after the other.
            tolerance: bound on the distance of float32 latents.
            profiles: whether our fastest arm runs once more in a profiler.
        """
        self._arms = tuple(arms)
        self._rounds = rounds
        self._baseline_edits = baseline_edits
        self._tolerance = tolerance
        self._profiles = profiles
        self._known: dict[tuple[str, int, int], tuple[_First, Measured]] = {}

    def time_cell(self, workload: BenchWorkload) -> CellTimes:
        """Times all arms on one workload, and D a second time as "D again" to show the noise.

        Before the rounds every arm runs once, without TF32 if it runs in float32, and its latents
        are checked. In a round every arm runs once; each round begins with another arm. An arm
        that raises or has wrong latents is left out from then on.
        """
        cell = _Cell({arm.name: arm.afresh() for arm in self._arms}, workload, self._baseline_edits)
        known = {n: self._known[k] for n in cell.arms if (k := cell.key(n)) in self._known}
        for name in cell.arms:
            if name in known:
                cell.first[name] = known[name][0]
            else:
                cell.make_first(name)
        cell.judge(self._tolerance)
        cell.run_rounds(self._rounds, without=known)
        measured = {
            name: cell.again(known[name][1]) if name in known else cell.measured(name)
            for name in cell.entries()
        }
        for name, each in measured.items():
            if name != _AGAIN and cell.arms[name].shares != "everything":
                self._known.setdefault(cell.key(name), (cell.first[name], each))
        profile = cell.profile(measured) if self._profiles else None
        return CellTimes(tuple(measured.values()), tuple(cell.failed), profile)


class _Cell:
    """The state of one cell while it is timed."""

    def __init__(self, arms: dict[str, Arm], workload: BenchWorkload, baseline_edits: int) -> None:
        self.arms = arms
        self.first: dict[str, _First] = {}
        self.failed: list[Failed] = []
        self._workload = workload
        self._parts = {n: _part(arm, workload, baseline_edits) for n, arm in arms.items()}
        self._runs: dict[str, list[Run]] = {}

    def key(self, name: str) -> tuple[str, int, int]:
        """An arm's work in this cell: its name, the sources and the edits per source."""
        part = self._parts[name]
        return name, len(part.images), len(part.target_prompts[0])

    def entries(self) -> list[str]:
        """The names to time: the arms that have not failed, and "D again"."""
        failed = {each.arm for each in self.failed}
        names = [*self.arms, _AGAIN] if _TWICE in self.arms else list(self.arms)
        return [n for n in names if n not in failed and _arm_of(n) not in failed]

    def make_first(self, name: str) -> None:
        arm, part = self.arms[name], self._parts[name]
        first = self._try(name, lambda: _first(arm, part))
        if first is not None:
            self.first[name] = first

    def judge(self, tolerance: float) -> None:
        """Marks the arms whose latents are wrong as failed."""
        self._agreements = agreements(
            {name: first.latents for name, first in self.first.items()},
            is_exact=all(arm.checkpoint.dtype == torch.float32 for arm in self.arms.values()),
            tolerance=tolerance,
        )
        for name, each in self._agreements.items():
            if each.wrong:
                self._fail(name, each.wrong)

    def run_rounds(self, rounds: int, without: Iterable[str]) -> None:
        skipped = set(without)
        for number in range(rounds):
            entries = [name for name in self.entries() if name not in skipped]
            start = number % max(1, len(entries))
            for name in entries[start:] + entries[:start]:
                arm, part = self.arms[_arm_of(name)], self._parts[_arm_of(name)]
                run = self._try(name, lambda arm=arm, part=part: _run(arm, part))  # type: ignore[misc]
                if run is not None:
                    self._runs.setdefault(name, []).append(run)
            _log.info(
                "%d sources, %d edits of each: round %d of %d",
                len(self._workload.images),
                len(self._workload.target_prompts[0]),
                number + 1,
                rounds,
            )

    def measured(self, name: str) -> Measured:
        arm, first = self.arms[_arm_of(name)], self.first[_arm_of(name)]
        agreement = self._agreements[arm.name]
        return Measured(
            arm=name,
            title=arm.title if name == arm.name else f"{arm.title} (again)",
            dtype=str(arm.checkpoint.dtype).removeprefix("torch."),
            sources=len(self._workload.images),
            edits_per_source=len(self._workload.target_prompts[0]),
            edits=self._parts[arm.name].edits,
            runs=tuple(self._runs[name]),
            first_s=first.wall_s,
            flops=first.flops,
            peak_bytes=first.peak_bytes,
            from_authors=agreement.from_authors,
            from_ours=agreement.from_ours,
        )

    def again(self, known: Measured) -> Measured:
        """The results of another cell, in which the arm did the same work, for this cell."""
        agreement = self._agreements[known.arm]
        return replace(
            known,
            sources=len(self._workload.images),
            edits_per_source=len(self._workload.target_prompts[0]),
            from_authors=agreement.from_authors,
            from_ours=agreement.from_ours,
            timed_in=known.timed_in or f"{known.sources} x {known.edits_per_source}",
        )

    def profile(self, measured: dict[str, Measured]) -> DeviceTime | None:
        """A profile of our fastest arm; None if all our arms failed, or the profiler did."""
        ours = [name for name in measured if name in OURS]
        if not ours:
            return None
        name = max(ours, key=lambda name: measured[name].edits_per_s)
        return self._try("profile", lambda: profiled(self.arms[name], self._parts[name]))

    def _try(self, name: str, work: Callable[[], _T]) -> _T | None:
        """The result of `work`; None after an error, which only makes this arm fail."""
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - out of memory, a kernel that fails, ...
            cause = one_line(error)
        self._fail(name, cause)
        _free_memory()
        return None

    def _fail(self, name: str, cause: str) -> None:
        sources, edits = len(self._workload.images), len(self._workload.target_prompts[0])
        _log.warning("%d x %d: %s failed: %s", sources, edits, name, cause)
        self.failed.append(Failed(name, sources, edits, cause))


def _arm_of(name: str) -> str:
    return _TWICE if name == _AGAIN else name


def _part(arm: Arm, workload: BenchWorkload, baseline_edits: int) -> BenchWorkload:
    if arm.shares == "everything":
        return workload
    if arm.shares == "inversion":
        return workload.cut(1, len(workload.target_prompts[0]))
    return workload.cut(1, baseline_edits)


def _first(arm: Arm, workload: BenchWorkload) -> _First:
    """An arm's first run: latents, time, FLOPs and peak memory.

    A counter sees no operations inside a CUDA graph. So graphs are off here, and captured
    afterwards.
    """
    device = arm.checkpoint.device
    memory = PeakMemory(device)
    counter = flop_counter()
    with (
        exact_float32(),
        memory.measuring(),
        counter,
        _without_graphs(arm),
    ):
        wait_for(device)
        start = time.perf_counter()
        latents = arm.edit(workload, PhaseClock(device))
        wait_for(device)
        wall_s = time.perf_counter() - start
    if device.type == "cuda":
        arm.edit(workload, PhaseClock(device))
    flops = counter.get_total_flops() / workload.edits
    return _First(latents, wall_s, flops, memory.bytes)


@contextmanager
def _without_graphs(arm: Arm) -> Iterator[None]:
    unet = arm.networks.unet
    if not isinstance(unet, UNetCall):
        yield
        return
    before, unet.graphs.captures = unet.graphs.captures, False
    try:
        yield
    finally:
        unet.graphs.captures = before


def _run(arm: Arm, workload: BenchWorkload) -> Run:
    device = arm.checkpoint.device
    clock = PhaseClock(device)
    with clock.watching(arm.networks):
        wait_for(device)
        start = time.perf_counter()
        arm.edit(workload, clock)
        wait_for(device)
        wall_s = time.perf_counter() - start
    phase_s = clock.seconds()
    return Run(wall_s, {**phase_s, REST: wall_s - sum(phase_s.values())}, clock.rows)


def one_line(error: BaseException) -> str:
    """An error's type and the first line of its message; two lines if the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {' '.join(lines[: 2 if lines[0].endswith(':') else 1])}"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

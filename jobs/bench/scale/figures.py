"""The figures measured at one size, and the aims that they are compared with. All fit into JSON."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fpe_core.device import device_name


@dataclass(frozen=True)
class PhaseCost:
    """Wall time, CPU time and peak memory of a phase of the driver, in a process of its own.

    Attributes:
        start_bytes: memory before the phase, with its libraries loaded.
        peak_bytes: peak memory, without mapped pages of Ray's object store.
        shared_bytes: peak of the mapped pages of the object store.
        reader_bytes, editor_bytes: peak memory of the largest worker that reads and decodes, and of
            the largest that edits and writes, without such pages; 0: there was none.
    """

    seconds: float
    cpu_seconds: float
    start_bytes: int
    peak_bytes: int
    shared_bytes: int = 0
    reader_bytes: int = 0
    editor_bytes: int = 0


@dataclass(frozen=True)
class Planned:
    """Planning: the manifest is checked, ids are made, the work list is written."""

    cost: PhaseCost
    edits: int
    work_files: int
    work_bytes: int

    @property
    def edits_per_s(self) -> float:
        return self.edits / self.cost.seconds


@dataclass(frozen=True)
class Selected:
    """Planning the first round under quotas: a third pass, which selects its edits."""

    cost: PhaseCost
    edits: int
    selected: int


@dataclass(frozen=True)
class Verified:
    """`fpe verify` of a finished run. The processes that decode images are not in `cost`'s CPU time
    and memory."""

    cost: PhaseCost
    edits: int
    images: int


@dataclass(frozen=True)
class Objects:
    """Numbers of files of a run folder by kind.

    `in_parts` counts the files of parts without images; `others` counts lease, dataset card, config
    and statistics.
    """

    parts: int
    images: int
    in_parts: int
    ledger: int
    work: int
    others: int

    @property
    def small_per_part(self) -> float:
        """Files per part in the parts themselves, without images."""
        return self.in_parts / max(1, self.parts)

    @property
    def all_small_per_part(self) -> float:
        """Files per part without images, including the ledger, the work list and the others."""
        return (self.in_parts + self.ledger + self.work + self.others) / max(1, self.parts)


@dataclass(frozen=True)
class RunThrough:
    """A whole run: plan, fetch, decode, encode, write, commit.

    Attributes:
        start_s: seconds until the first outcomes arrived: lease, plan, Ray, imports of its workers.
        store_bytes: peak of Ray's object store, polled once a second; None if not reported.
        requests: number of requests to the store, by stage of the run.
    """

    cost: PhaseCost
    edits: int
    start_s: float
    store_bytes: int | None
    objects: Objects
    requests: dict[str, float]

    @property
    def overhead_ms(self) -> float:
        """Duration of the whole run per edit, on all CPUs of the machine."""
        return 1000 * self.cost.seconds / self.edits

    @property
    def streaming_ms(self) -> float:
        """The same from the first outcomes on, which is what a long run approaches."""
        return 1000 * (self.cost.seconds - self.start_s) / self.edits


@dataclass(frozen=True)
class Resumed:
    """The same command on a finished run.

    `is_run_whole` is False if the outcomes were committed to the ledger without making images.
    """

    cost: PhaseCost
    edits: int
    ledger_files: int
    ledger_bytes: int
    is_run_whole: bool


@dataclass(frozen=True)
class SizeFigures:
    """All figures measured at one size; None for what was not measured."""

    rows: int
    edits_per_row: int
    planned: Planned
    run: RunThrough | None
    resumed: Resumed | None
    selected: Selected | None = None
    verified: Verified | None = None

    @property
    def edits(self) -> int:
        return self.rows * self.edits_per_row


def as_json(sizes: Sequence[SizeFigures]) -> dict[str, Any]:
    """All figures, with a description of the machine that they hold for."""
    return {
        "machine": {
            "cpu": device_name(torch.device("cpu")),
            "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0],
            "python": platform.python_version(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        "sizes": [dataclasses.asdict(size) | {"edits": size.edits} for size in sizes],
    }


FLAT_FROM_EDITS = 100_000
PLANNING_EDITS_PER_S = 50_000.0
OVERHEAD_MS = 5.0
RESUME_S = 60.0
RESUME_EDITS = 1_000_000
DRIVER_BYTES = 2_000_000_000
FLAT_RATIO = 1.25
"""Largest ratio of the driver's memory, largest to smallest of the large sizes, that counts as
flat. It cannot be 1, because the ledger's ids take 16 bytes each."""
BYTES_PER_EDIT = 20.0
OBJECTS_PER_PART = 1.0


@dataclass(frozen=True)
class Aim:
    """One aim and the figure reached; None if it was not measured."""

    text: str
    reached: float | None
    most: float | None = None
    least: float | None = None

    @property
    def is_met(self) -> bool | None:
        if self.reached is None:
            return None
        is_enough = self.least is None or self.reached >= self.least
        return is_enough and (self.most is None or self.reached <= self.most)


def aims(sizes: Sequence[SizeFigures]) -> list[Aim]:
    """All aims, each with the worst figure of the sizes that it is about."""
    large = [size for size in sizes if size.edits >= FLAT_FROM_EDITS]
    runs = [size.run for size in sizes if size.run is not None]
    largest_run = max(runs, key=lambda run: run.edits, default=None)
    resumed = [s.resumed for s in sizes if s.resumed is not None and s.edits >= RESUME_EDITS]
    costs = [cost.peak_bytes for size in sizes for cost in _costs(size)]
    return [
        Aim(
            f"planning, edits/s, from {FLAT_FROM_EDITS:,} edits on",
            min((size.planned.edits_per_s for size in large), default=None),
            least=PLANNING_EDITS_PER_S,
        ),
        Aim("driver memory, bytes, at every size", max(costs, default=None), most=DRIVER_BYTES),
        *_flatness(large),
        *_slopes(large),
        Aim(
            f"resuming a finished run of {RESUME_EDITS:,} edits, seconds",
            min((each.cost.seconds for each in resumed), default=None),
            most=RESUME_S,
        ),
        Aim(
            "small objects per part, images not counted",
            max((run.objects.small_per_part for run in runs), default=None),
            most=OBJECTS_PER_PART,
        ),
        Aim(
            "overhead per edit, ms, of the largest run",
            None if largest_run is None else largest_run.overhead_ms,
            most=OVERHEAD_MS,
        ),
    ]


def _costs(size: SizeFigures) -> Iterator[PhaseCost]:
    for phase in (size.planned, size.run, size.resumed, size.selected, size.verified):
        if phase is not None:
            yield phase.cost


def _bytes_per_edit(
    sizes: Sequence[SizeFigures], cost_of: Callable[[SizeFigures], PhaseCost | None]
) -> float | None:
    """How much more memory an edit more takes, from the smallest to the largest of the sizes."""
    peaks = {size.edits: cost.peak_bytes for size in sizes if (cost := cost_of(size)) is not None}
    if len(peaks) < 2:
        return None
    few, many = min(peaks), max(peaks)
    return (peaks[many] - peaks[few]) / (many - few)


def _slopes(large: Sequence[SizeFigures]) -> Iterator[Aim]:
    phases: dict[str, Callable[[SizeFigures], PhaseCost | None]] = {
        "planning under quotas": lambda size: None if size.selected is None else size.selected.cost,
        "verifying": lambda size: None if size.verified is None else size.verified.cost,
    }
    for name, cost_of in phases.items():
        text = f"bytes an edit while {name}, from {FLAT_FROM_EDITS:,} edits on"
        yield Aim(text, _bytes_per_edit(large, cost_of), most=BYTES_PER_EDIT)


def _flatness(large: Sequence[SizeFigures]) -> Iterator[Aim]:
    phases: dict[str, Callable[[SizeFigures], PhaseCost | None]] = {
        "planning": lambda size: size.planned.cost,
        "running": lambda size: None if size.run is None else size.run.cost,
        "resuming": lambda size: None if size.resumed is None else size.resumed.cost,
    }
    for name, cost_of in phases.items():
        peaks = [cost.peak_bytes for size in large if (cost := cost_of(size)) is not None]
        ratio = max(peaks) / min(peaks) if len(peaks) > 1 else None
        text = (
            f"driver memory while {name}, largest over smallest from {FLAT_FROM_EDITS:,} edits on"
        )
        yield Aim(text, ratio, most=FLAT_RATIO)

"""What is measured at one size, as values that JSON can hold."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a phase took of the driver, a process of its own: wall and CPU seconds, peak of memory.

    Attributes:
        start_bytes: what it held before the phase, its libraries loaded.
        peak_bytes: without pages of Ray's object store, which are not the driver's.
        shared_bytes: the most of those that it had mapped beside.
    """

    seconds: float
    cpu_seconds: float
    start_bytes: int
    peak_bytes: int
    shared_bytes: int = 0


@dataclass(frozen=True)
class Planned:
    """Planning: the manifest checked, ids made, the work list written."""

    cost: Cost
    edits: int
    work_files: int
    work_bytes: int

    @property
    def edits_per_s(self) -> float:
        return self.edits / self.cost.seconds


@dataclass(frozen=True)
class Objects:
    """Files of a run folder by kind.

    `in_parts` are those of parts beside images; `others` the lease, card, config and statistics.
    """

    parts: int
    images: int
    in_parts: int
    ledger: int
    work: int
    others: int

    @property
    def small_per_part(self) -> float:
        """In the parts themselves."""
        return self.in_parts / max(1, self.parts)

    @property
    def all_small_per_part(self) -> float:
        """With the ledger, the work list and the rest shared out."""
        return (self.in_parts + self.ledger + self.work + self.others) / max(1, self.parts)


@dataclass(frozen=True)
class RunThrough:
    """A whole run: planned, fetched, decoded, encoded, written, committed.

    Attributes:
        start_s: until the first outcomes arrived: lease, plan, Ray, its workers' imports.
        store_bytes: the most that Ray's object store held at a look, one a second; None where Ray
            did not tell.
        requests: to the store, by station of the run.
    """

    cost: Cost
    edits: int
    start_s: float
    store_bytes: int | None
    objects: Objects
    requests: dict[str, float]

    @property
    def overhead_ms(self) -> float:
        """Of one edit, on all CPUs of the machine, everything counted."""
        return 1000 * self.cost.seconds / self.edits

    @property
    def streaming_ms(self) -> float:
        """The same from the first outcomes on: what it comes to in a long run."""
        return 1000 * (self.cost.seconds - self.start_s) / self.edits


@dataclass(frozen=True)
class Resumed:
    """The same command on a finished run.

    `is_run_whole`: False where the outcomes were committed to the ledger without making pictures.
    """

    cost: Cost
    edits: int
    ledger_files: int
    ledger_bytes: int
    is_run_whole: bool


@dataclass(frozen=True)
class SizeFigures:
    """All that was measured at one size; None what was not."""

    rows: int
    edits_per_row: int
    planned: Planned
    run: RunThrough | None
    resumed: Resumed | None

    @property
    def edits(self) -> int:
        return self.rows * self.edits_per_row


def as_json(sizes: Sequence[SizeFigures]) -> dict[str, Any]:
    """Everything, with the machine: figures of one say nothing about another."""
    return {
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0],
            "python": platform.python_version(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
        "sizes": [dataclasses.asdict(size) | {"edits": size.edits} for size in sizes],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

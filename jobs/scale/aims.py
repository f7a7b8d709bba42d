"""What the engine has to reach, and what it reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jobs.scale.figures import Cost, SizeFigures

FLAT_FROM_EDITS = 100_000
PLANNING_EDITS_PER_S = 50_000.0
OVERHEAD_MS = 5.0
RESUME_S = 60.0
RESUME_EDITS = 1_000_000
DRIVER_BYTES = 2_000_000_000
FLAT_RATIO = 1.25
"""Growth of the driver from the smallest of the large sizes to the largest that still is flat: the
ledger's ids alone take 16 bytes each."""
OBJECTS_PER_PART = 1.0


@dataclass(frozen=True)
class Aim:
    """One aim beside what was reached; None where nothing was measured that tells."""

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
    """All of them; each by the worst size that it speaks of."""
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
        Aim(
            f"resuming a finished run of {RESUME_EDITS:,} edits, seconds",
            min((each.cost.seconds for each in resumed), default=None),
            most=RESUME_S,
        ),
        Aim(
            "small objects in a part beside its images",
            max((run.objects.small_per_part for run in runs), default=None),
            most=OBJECTS_PER_PART,
        ),
        Aim(
            "overhead per edit, ms, of the largest run",
            None if largest_run is None else largest_run.overhead_ms,
            most=OVERHEAD_MS,
        ),
    ]


def _costs(size: SizeFigures) -> Iterator[Cost]:
    for phase in (size.planned, size.run, size.resumed):
        if phase is not None:
            yield phase.cost


def _flatness(large: Sequence[SizeFigures]) -> Iterator[Aim]:
    phases: dict[str, Callable[[SizeFigures], Cost | None]] = {
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

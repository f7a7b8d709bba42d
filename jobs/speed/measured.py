"""What came out of timing the arms: runs, medians, and what went wrong instead."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from jobs.speed.clock import PHASES

REST = "rest"
"""What is left of the time beside `PHASES`: scheduler, pictures, Python, waiting."""


@dataclass(frozen=True)
class Run:
    """One arm, once.

    Attributes:
        wall_s: from the call to everything done.
        phase_s: the part of it inside the networks, by `PHASES`, and `REST`.
        unet_rows: rows that entered the UNet, seen by a hook.
    """

    wall_s: float
    phase_s: dict[str, float]
    unet_rows: int


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
        flops: run in all networks per edit, counted in the first run; of D for a compiled arm, 0
            where there is none.
        peak_bytes: of memory in the first run; see `PeakMemory`.
        from_authors: of the edit farthest from A's, of those that both made, as a share of its
            latent's norm, in this dtype; None where A failed.
        from_ours: the same from C, or D where C failed; None for A and where both failed.
        timed_in: another cell, such as "1 x 1", in which these runs were made, because the arm
            does the same work there; "" for this one.
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
    peak_bytes: int
    from_authors: float | None
    from_ours: float | None
    timed_in: str = ""

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


@dataclass(frozen=True)
class Failed:
    """An arm without times in a cell.

    Attributes:
        arm: which, or "profile".
        sources, edits_per_source: the cell.
        cause: what happened, in a line.
    """

    arm: str
    sources: int
    edits_per_source: int
    cause: str

"""All that was measured, as one value that JSON can hold.

What came out of timing the arms: runs, medians, and what went wrong instead.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.bench.machine import Machine
from jobs.bench.speed.device_time import DeviceTime
from jobs.bench.speed.gate import GateComparison
from jobs.bench.speed.instruments import NETWORK_PHASES


@dataclass(frozen=True)
class Sweep:
    """One model over the cells that have been measured so far.

    Attributes:
        model: its name.
        parameters: of all edits, as `EditParameters.to_dict` has them.
        gate: what had to agree and to disagree before anything was timed.
        cells: (sources, edits per source), in the order of measuring.
        measured: cell by cell, arm by arm.
        failed: arms that have no times in a cell.
        profiles: of our fastest arm in each cell, where one was made.
        minimal_flops: of the UNet per edit in the minimal exact procedure, by edits per source.
        product_flops_per_s: of a matrix product in this run, by dtype; float32 with TF32 where
            convolutions may use that.
    """

    model: str
    parameters: dict[str, Any]
    gate: tuple[GateComparison, ...]
    cells: tuple[tuple[int, int], ...]
    measured: tuple[Measured, ...]
    failed: tuple[Failed, ...]
    profiles: tuple[DeviceTime, ...]
    minimal_flops: dict[int, float]
    product_flops_per_s: dict[str, float]

    def of(self, sources: int, edits_per_source: int) -> list[Measured]:
        """The arms of one cell."""
        cell = (sources, edits_per_source)
        return [each for each in self.measured if (each.sources, each.edits_per_source) == cell]

    def utilisation(self, each: Measured) -> tuple[float, float]:
        """Algorithmic and executed: FLOPs needed, and run, per second, over the product's."""
        peak = self.product_flops_per_s[each.dtype]
        needed = self.minimal_flops[each.edits_per_source]
        return needed * each.edits_per_s / peak, each.flops * each.edits_per_s / peak

    def noise(self, sources: int, edits_per_source: int) -> float | None:
        """How far the two medians of D are apart, as a share: differences below mean nothing.

        None where D failed.
        """
        wall_s = {each.arm: each.wall_s for each in self.of(sources, edits_per_source)}
        if not {"D", "D again"} <= set(wall_s):
            return None
        first, again = wall_s["D"], wall_s["D again"]
        return abs(first - again) / min(first, again)


def as_json(
    machine: Machine,
    settings: dict[str, Any],
    sweeps: Sequence[Sweep],
    price_per_hour: float | None,
) -> dict[str, Any]:
    """Everything, raw times included. `settings` are what a run that goes on has to have too."""
    return {
        "machine": asdict(machine),
        "settings": settings,
        "price_per_hour": price_per_hour,
        "models": [_sweep_as_json(sweep, price_per_hour) for sweep in sweeps],
    }


def price_per_thousand(each: Measured, price_per_hour: float) -> float:
    return price_per_hour * 1000 / (3600 * each.edits_per_s)


def _sweep_as_json(sweep: Sweep, price_per_hour: float | None) -> dict[str, Any]:
    return {
        "model": sweep.model,
        "parameters": sweep.parameters,
        "gate": [{**asdict(each), "ok": each.ok} for each in sweep.gate],
        "minimal_flops_per_edit": {str(n): flops for n, flops in sweep.minimal_flops.items()},
        "product_flops_per_s": sweep.product_flops_per_s,
        "cells": [list(cell) for cell in sweep.cells],
        "failed": [asdict(each) for each in sweep.failed],
        "profiles": [asdict(each) for each in sweep.profiles],
        "noise": [
            {"sources": s, "edits_per_source": n, "share": sweep.noise(s, n)}
            for s, n in sweep.cells
        ],
        "measured": [_measured_as_json(sweep, each, price_per_hour) for each in sweep.measured],
    }


def _measured_as_json(sweep: Sweep, each: Measured, price_per_hour: float | None) -> dict[str, Any]:
    algorithmic, executed = sweep.utilisation(each)
    return {
        **asdict(each),
        "wall_s": each.wall_s,
        "spread": each.spread,
        "edits_per_s": each.edits_per_s,
        "edits_per_device_hour": 3600 * each.edits_per_s,
        "price_per_1000": price_per_hour and price_per_thousand(each, price_per_hour),
        "unet_rows_per_edit": each.rows_per_edit,
        "phase_ms_per_edit": each.phase_ms,
        "utilisation_algorithmic": algorithmic,
        "utilisation_executed": executed,
    }


REST = "rest"
"""What is left of the time beside `NETWORK_PHASES`: scheduler, pictures, Python, waiting."""


@dataclass(frozen=True)
class Run:
    """One arm, once.

    Attributes:
        wall_s: from the call to everything done.
        phase_s: the part of it inside the networks, by `NETWORK_PHASES`, and `REST`.
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
        first_s: the first run, before the rounds: warm-up.
        flops: run in all networks per edit, counted in the first run.
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
            for phase in (*NETWORK_PHASES, REST)
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

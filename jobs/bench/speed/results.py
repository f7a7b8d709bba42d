"""The results of timing the arms: runs, medians and failures, in a form that fits into JSON."""

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
    """The results of one model for the cells that have been measured so far.

    Attributes:
        model: its name.
        parameters: of all edits, as `EditParameters.to_dict` has them.
        gate: the comparisons of the gate that the model had to pass.
        cells: (sources, edits per source), in the order of measuring.
        measured: cell by cell, arm by arm.
        failed: arms that have no times in a cell.
        profiles: of our fastest arm in each cell, if profiles were requested.
        minimal_flops: UNet FLOPs per edit in the minimal exact procedure, by edits per source.
        product_flops_per_s: of a matrix product on this device, by dtype; float32 uses TF32 if
            convolutions may use it.
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
        """FLOPs needed (algorithmic) and FLOPs run (executed) per second, both as a share of a
        matrix product's."""
        peak = self.product_flops_per_s[each.dtype]
        needed = self.minimal_flops[each.edits_per_source]
        return needed * each.edits_per_s / peak, each.flops * each.edits_per_s / peak

    def noise(self, sources: int, edits_per_source: int) -> float | None:
        """Relative difference of the two medians of D; smaller differences mean nothing.

        None if D failed.
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
    """All results, raw times included. A run can resume only with the same `settings`."""
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
        "unet_rows_per_s": each.rows_per_s,
        "phase_ms_per_edit": each.phase_ms,
        "utilisation_algorithmic": algorithmic,
        "utilisation_executed": executed,
    }


REST = "rest"
"""The time outside `NETWORK_PHASES`: scheduler, image conversion, Python, waiting."""


@dataclass(frozen=True)
class Run:
    """One timed run of an arm.

    Attributes:
        wall_s: from the call until all work is done.
        phase_s: its parts: time inside the networks by `NETWORK_PHASES`, and `REST`.
        unet_rows: rows that entered the UNet, counted by a hook.
    """

    wall_s: float
    phase_s: dict[str, float]
    unet_rows: int


@dataclass(frozen=True)
class Measured:
    """The results of one arm in one cell.

    Attributes:
        arm, title: its name and description.
        dtype: the networks' dtype, such as "bfloat16".
        sources, edits_per_source: the cell of the sweep.
        edits: the number of edits that one run made; arms that share nothing make only a few.
        runs: one per round, in order.
        first_s: duration of the first run, the warm-up before the rounds.
        flops: FLOPs per edit in all networks, counted in the first run.
        peak_bytes: peak memory of the first run; see `PeakMemory`.
        from_authors: the largest distance of an edit from A's, among those that both made, as a
            share of its latent's norm, in this dtype; None if A failed.
        from_ours: the same distance from C, or from D if C failed; None for A, and if both failed.
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
        """Median over the rounds."""
        return statistics.median(run.wall_s for run in self.runs)

    @property
    def edits_per_s(self) -> float:
        return self.edits / self.wall_s

    @property
    def spread(self) -> float:
        """Slowest minus fastest round, as a share of the median."""
        times = [run.wall_s for run in self.runs]
        return (max(times) - min(times)) / self.wall_s

    @property
    def rows_per_edit(self) -> float:
        return self.runs[0].unet_rows / self.edits

    @property
    def rows_per_s(self) -> float:
        """UNet rows, of the whole run's time."""
        return self.runs[0].unet_rows / self.wall_s

    @property
    def phase_ms(self) -> dict[str, float]:
        """Milliseconds per edit by phase, medians over the rounds."""
        return {
            phase: 1000 * statistics.median(run.phase_s[phase] for run in self.runs) / self.edits
            for phase in (*NETWORK_PHASES, REST)
        }


@dataclass(frozen=True)
class Failed:
    """An arm that has no times in a cell.

    Attributes:
        arm: its name, or "profile".
        sources, edits_per_source: the cell.
        cause: the error in one line.
    """

    arm: str
    sources: int
    edits_per_source: int
    cause: str

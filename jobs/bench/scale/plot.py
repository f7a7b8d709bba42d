"""Plots the figures against the number of edits."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from jobs.bench.scale.figures import (
    DRIVER_BYTES,
    OVERHEAD_MS,
    PLANNING_EDITS_PER_S,
    RESUME_S,
    SizeFigures,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Value: TypeAlias = Callable[[SizeFigures], float | None]


def scale_plot(sizes: Sequence[SizeFigures], path: pathlib.Path) -> None:
    """Four panels against the number of edits, with the aims dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.4), layout="constrained")
    (planning, overhead), (memory, resuming) = figure.subplots(2, 2)
    _draw(planning, "planning, microseconds per edit", 1e6 / PLANNING_EDITS_PER_S)
    _line(planning, "wall", sizes, lambda s: 1e6 * s.planned.cost.seconds / s.edits)
    _line(planning, "CPU", sizes, lambda s: 1e6 * s.planned.cost.cpu_seconds / s.edits)
    _draw(overhead, "running without an editor, ms per edit", OVERHEAD_MS)
    _line(overhead, "whole run", sizes, lambda s: s.run.overhead_ms if s.run else None)
    _line(overhead, "once started", sizes, lambda s: s.run.streaming_ms if s.run else None)
    _draw(memory, "peak memory of the driver, MB", DRIVER_BYTES / 1e6)
    _line(memory, "planning", sizes, lambda s: s.planned.cost.peak_bytes / 1e6)
    _line(memory, "running", sizes, lambda s: s.run.cost.peak_bytes / 1e6 if s.run else None)
    _line(
        memory, "resuming", sizes, lambda s: s.resumed.cost.peak_bytes / 1e6 if s.resumed else None
    )
    _draw(resuming, "resuming a finished run, seconds", RESUME_S)
    _line(resuming, "wall", sizes, lambda s: s.resumed.cost.seconds if s.resumed else None)
    _line(resuming, "CPU", sizes, lambda s: s.resumed.cost.cpu_seconds if s.resumed else None)
    for panel in (planning, overhead, memory, resuming):
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def _draw(panel: Axes, title: str, aim: float) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_title(title, fontsize=11)
    panel.set_xlabel("edits")
    panel.grid(alpha=0.3)
    panel.axhline(aim, color="0.4", linestyle="--", linewidth=1, label=f"aim: {aim:g}")


def _line(panel: Axes, label: str, sizes: Sequence[SizeFigures], value: _Value) -> None:
    points = [(s.edits, v) for s in sizes if (v := value(s)) is not None]
    if points:
        panel.plot(*zip(*points, strict=True), "o-", label=label)

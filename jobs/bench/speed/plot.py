"""Plots the speed of the arms."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from jobs.bench.speed.arms import OURS
from jobs.bench.speed.results import Sweep

_ARMS = ("A", "B", "B+", *OURS)
_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")


def speed_plot(sweeps: Sequence[Sweep], path: pathlib.Path) -> None:
    """A panel per model: edits per hour against edits per source.

    Each arm has a colour. Our arms have one line, with its own marker, per number of sources. A, B
    and B+ make one edit after the other, so they have one line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * len(sweeps), 4.8), layout="constrained")
    for panel, sweep in zip(np.atleast_1d(figure.subplots(1, len(sweeps))), sweeps, strict=True):
        edits = sorted({n for _, n in sweep.cells})
        numbers = sorted({s for s, _ in sweep.cells})
        for (arm, sources), points in _lines(sweep).items():
            style = 0 if sources is None else numbers.index(sources)
            panel.plot(
                *zip(*sorted(points.items()), strict=True),
                color=f"C{_ARMS.index(arm)}",
                linestyle=_STYLES[style % len(_STYLES)],
                marker=_MARKERS[style % len(_MARKERS)],
                label=arm if sources is None else f"{arm}, {_counted(sources)}",
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(edits, [str(n) for n in edits])
        panel.set_xlabel("edits per source")
        panel.set_title(sweep.model, fontsize=11)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.axes[0].set_ylabel("edits per hour")
    figure.savefig(path, dpi=110)


def _lines(sweep: Sweep) -> dict[tuple[str, int | None], dict[int, float]]:
    """Edits per hour by edits per source, for each arm and, of ours, number of sources."""
    lines: dict[tuple[str, int | None], dict[int, float]] = {}
    for each in sweep.measured:
        if each.arm in _ARMS:
            line = lines.setdefault((each.arm, each.sources if each.arm in OURS else None), {})
            line[each.edits_per_source] = 3600 * each.edits_per_s
    return lines


def _counted(sources: int) -> str:
    return "1 source" if sources == 1 else f"{sources} sources"

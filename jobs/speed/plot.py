"""The measurements as a picture."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from jobs.speed.report import Sweep
from pipeline.errors import UserError


def require_matplotlib() -> None:
    """Said before anything is measured. Raises UserError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError(
            "the plot needs matplotlib: pip install 'free-prompt-editing-batch[bench]'"
        ) from error


def speed_plot(sweeps: Sequence[Sweep], path: pathlib.Path) -> None:
    """A panel per model: edits per hour against edits per source, a line per arm.

    Of several numbers of sources the one with the fastest edits is drawn, for each arm.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(sweeps), 4.2), layout="constrained")
    for panel, sweep in zip(np.atleast_1d(figure.subplots(1, len(sweeps))), sweeps, strict=True):
        edits = sorted({n for _, n in sweep.cells})
        arms = {each.arm: each.title for each in sweep.measured if "again" not in each.arm}
        for arm, title in arms.items():
            best = [
                max(
                    3600 * each.edits_per_s
                    for each in sweep.measured
                    if (each.arm, each.edits_per_source) == (arm, n)
                )
                for n in edits
            ]
            panel.plot(edits, best, "o-", label=f"{arm}  {title}")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(edits, [str(n) for n in edits])
        panel.set_xlabel("edits per source")
        panel.set_title(sweep.model, fontsize=11)
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("edits per hour")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)

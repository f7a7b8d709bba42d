"""Printed tables of the workloads with pictures, and their aims."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from jobs.bench.scale.figures import Aim
from jobs.bench.scale.picture_rounds import PictureFigures
from jobs.bench.scale.tables import megabytes
from jobs.terminal.titled_table import titled_table

RATIO_TO_BARE = 1.05
PLAN_BYTES_PER_EDIT = 200.0
PROCESS_BYTES = 4_000_000_000


def planning_table(figures: Sequence[PictureFigures]) -> Table:
    """Planning alone; bytes are those of a store, headers included."""
    columns = (
        "workload",
        "store",
        "edits",
        "manifest MB",
        "seconds",
        "read MB",
        "written, bytes an edit",
        "driver MB",
    )
    table = titled_table("Planning with pictures", columns)
    for each in figures:
        planned = each.planned
        table.add_row(
            each.workload,
            each.store,
            f"{_edits(each):,}",
            megabytes(each.manifest_bytes),
            f"{planned.cost.seconds:,.1f}",
            "-" if planned.traffic.read is None else megabytes(planned.traffic.read),
            f"{planned.traffic.written / _edits(each):,.0f}",
            megabytes(planned.cost.peak_bytes),
        )
    return table


def running_table(figures: Sequence[PictureFigures]) -> Table:
    """Whole runs, medians of the rounds; memory is the largest of them."""
    columns = (
        "workload",
        "store",
        "edits/s",
        "read kB an edit",
        "written kB an edit",
        "driver MB",
        "reader MB",
        "editor MB",
        "bare edits/s",
        "its reader MB",
        "our seconds to its",
    )
    table = titled_table("Running with pictures, without an editor", columns)
    for each in figures:
        costs, bare = [run.cost for run in each.runs], each.bare
        traffic = each.runs[-1].traffic
        edits = each.runs[-1].edits
        table.add_row(
            each.workload,
            each.store,
            f"{edits / each.seconds:,.1f}",
            "-" if traffic.read is None else f"{traffic.read / edits / 1000:,.1f}",
            f"{traffic.written / edits / 1000:,.1f}",
            megabytes(max(cost.peak_bytes for cost in costs)),
            megabytes(max(cost.reader_bytes for cost in costs)),
            megabytes(max(cost.editor_bytes for cost in costs)),
            f"{edits / statistics.median(run.seconds for run in bare):,.1f}" if bare else "-",
            megabytes(max(run.reader_bytes for run in bare)) if bare else "-",
            "-" if each.ratio is None else f"{each.ratio:.2f}",
        )
    return table


def aims(figures: Sequence[PictureFigures]) -> Iterator[Aim]:
    """The aims about pictures, each with the worst figure."""
    if not figures:
        return
    yield Aim(
        "seconds to those of a bare Ray Data script",
        _most(each.ratio for each in figures if each.ratio is not None),
        most=RATIO_TO_BARE,
    )
    yield Aim(
        "bytes written while planning, an edit",
        _most(each.planned.traffic.written / _edits(each) for each in figures),
        most=PLAN_BYTES_PER_EDIT,
    )
    yield Aim(
        "memory of one process, bytes",
        _most(
            max(run.cost.peak_bytes, run.cost.reader_bytes, run.cost.editor_bytes)
            for each in figures
            for run in each.runs
        ),
        most=PROCESS_BYTES,
    )


def _edits(figures: PictureFigures) -> int:
    return figures.rows * figures.prompts


def _most(values: Iterable[float]) -> float | None:
    return max(values, default=None)

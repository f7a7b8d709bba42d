"""Printed tables of the figures."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from jobs.bench.scale.figures import Aim, PhaseCost, SizeFigures
from jobs.terminal.titled_table import titled_table


def planning_table(sizes: Sequence[SizeFigures]) -> Table:
    """Planning, size by size."""
    columns = ("rows", "edits", "seconds", "edits/s", "per CPU second", "driver MB", "work MB")
    table = titled_table("Planning", columns)
    for size in sizes:
        planned = size.planned
        table.add_row(
            f"{size.rows:,}",
            f"{size.edits:,}",
            f"{planned.cost.seconds:,.1f}",
            f"{planned.edits_per_s:,.0f}",
            f"{planned.edits / max(planned.cost.cpu_seconds, 1e-9):,.0f}",
            megabytes(planned.cost.peak_bytes),
            megabytes(planned.work_bytes),
        )
    return table


def run_table(sizes: Sequence[SizeFigures]) -> Table:
    """Whole runs; "start-up" is the time until the first outcomes."""
    columns = (
        "edits",
        "seconds",
        "start-up",
        "edits/s",
        "ms per edit",
        "ms once started",
        "driver MB",
        "reader MB",
        "editor MB",
        "object store MB",
    )
    table = titled_table("Running without an editor", columns)
    for size in sizes:
        if (run := size.run) is not None:
            table.add_row(
                f"{run.edits:,}",
                f"{run.cost.seconds:,.1f}",
                f"{run.start_s:,.1f}",
                f"{run.edits / run.cost.seconds:,.0f}",
                f"{run.overhead_ms:,.2f}",
                f"{run.streaming_ms:,.2f}",
                megabytes(run.cost.peak_bytes),
                megabytes(run.cost.reader_bytes),
                megabytes(run.cost.editor_bytes),
                "-" if run.store_bytes is None else megabytes(run.store_bytes),
            )
    return table


def objects_table(sizes: Sequence[SizeFigures]) -> Table:
    """The files that runs wrote, and their requests to the store."""
    columns = (
        "edits",
        "parts",
        "images",
        "metadata",
        "ledger",
        "work list",
        "others",
        "small per part",
        "requests per edit",
    )
    table = titled_table("Objects written", columns)
    for size in sizes:
        if (run := size.run) is not None:
            objects = run.objects
            counts = (objects.parts, objects.images, objects.in_parts, objects.ledger, objects.work)
            table.add_row(
                f"{run.edits:,}",
                *(f"{count:,}" for count in counts),
                f"{objects.others:,}",
                f"{objects.all_small_per_part:.2f}",
                f"{sum(run.requests.values()) / run.edits:.2f}",
            )
    return table


def resume_table(sizes: Sequence[SizeFigures]) -> Table:
    """The same command on a finished run."""
    columns = ("edits", "ledger by", "ledger files", "ledger MB", "seconds", "driver MB")
    table = titled_table("Resuming a finished run", columns)
    for size in sizes:
        if (resumed := size.resumed) is not None:
            table.add_row(
                f"{resumed.edits:,}",
                "run" if resumed.is_run_whole else "commits only",
                f"{resumed.ledger_files:,}",
                megabytes(resumed.ledger_bytes),
                f"{resumed.cost.seconds:,.1f}",
                megabytes(resumed.cost.peak_bytes),
            )
    return table


def reading_table(sizes: Sequence[SizeFigures]) -> Table:
    """The passes that join what a run left: planning under quotas, and verifying."""
    columns = (
        "edits",
        "quotas, seconds",
        "selected",
        "driver MB",
        "verify, seconds",
        "images",
        "its MB",
    )
    table = titled_table("Planning under quotas, and verifying", columns)
    for size in sizes:
        cells = ["-"] * 6
        if (selected := size.selected) is not None:
            cells[:3] = (
                f"{selected.cost.seconds:,.1f}",
                f"{selected.selected:,}",
                megabytes(selected.cost.peak_bytes),
            )
        if (verified := size.verified) is not None:
            cells[3:] = (
                f"{verified.cost.seconds:,.1f}",
                f"{verified.images:,}",
                megabytes(verified.cost.peak_bytes),
            )
        table.add_row(f"{size.edits:,}", *cells)
    return table


def aims_table(aims: Sequence[Aim]) -> Table:
    """Every aim with the figure reached."""
    table = titled_table("Aims", ("aim", "wanted", "reached", ""))
    for aim in aims:
        wanted = f">= {aim.least:,g}" if aim.least is not None else f"<= {aim.most:,g}"
        reached = "not measured" if aim.reached is None else f"{aim.reached:,.4g}"
        verdict = {None: "", True: "met", False: "missed"}[aim.is_met]
        table.add_row(aim.text, wanted, reached, verdict)
    return table


def costs_note(sizes: Sequence[SizeFigures]) -> str:
    """A sentence on the driver's memory before it reads anything."""
    costs: list[PhaseCost] = [size.planned.cost for size in sizes]
    return f"The driver holds {megabytes(costs[0].start_bytes)} MB before it reads anything."


def megabytes(size: int) -> str:
    """Bytes as megabytes, with one decimal if there are few."""
    return f"{size / 1e6:,.0f}" if size >= 10e6 else f"{size / 1e6:,.1f}"

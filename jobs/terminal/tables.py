"""The tables that commands print about runs, plans and verifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from jobs.terminal.texts import count_text as _count
from jobs.terminal.texts import size_text
from jobs.terminal.titled_table import figures_table, titled_table

if TYPE_CHECKING:
    from pipeline.plan.plan import Plan
    from pipeline.plan.quotas import QuotaRow
    from pipeline.report.status import RunStatus
    from pipeline.run.stats import RunSummary
    from pipeline.verify.recompute import Recomputation
    from pipeline.verify.verify import Verification

MOST_CELLS = 40
"""Rows of the printed table of quotas; stats.json has all of them."""


def summary_table(summary: RunSummary) -> Table:
    """What a run did."""
    table = figures_table(f"Run {summary.output}")
    _row(table, "edits planned", _count(summary.edits_planned))
    _row(table, "already done", _count(summary.already_done))
    if summary.quotas:
        _row(table, "left out by quotas", _count(summary.edits_skipped_by_quota))
    _repeated_rows(table, summary.rows_repeated)
    if not summary.edits_made:
        return table
    if summary.approximation:
        _row(table, "approximation", summary.approximation, "yellow")
    _row(table, "accepted", _count(summary.accepted), "green")
    again = summary.retries
    if again.edits:
        what = f"{_count(again.accepted)} of {_count(again.edits)} retried"
        _row(table, "  by a retry", f"{what}, {_count(again.unet_rows)} UNet rows")
    for score, count in summary.scores_missing.items():
        _row(table, f"  without {score}", _count(count), "yellow")
    _row(table, "rejected", _count(summary.rejected), "yellow" if summary.rejected else "")
    _reasons(table, summary.rejections_by_reason)
    _row(table, "failed", _count(summary.failed), "red" if summary.failed else "")
    _reasons(table, summary.failures_by_code)
    _not_applicable(table, summary.not_applicable)
    _row(table, "seconds", f"{summary.seconds:.1f}")
    _row(table, "edits/s", f"{summary.edits_per_second:.2f}")
    _row(table, "UNet rows per edit", f"{summary.unet_rows_per_edit:.1f}")
    if round(summary.unet_rows_wasted):
        wasted = f"{_count(summary.unet_rows_wasted)} ({summary.wasted_share:.1%})"
        _row(table, "UNet rows wasted", wasted, "yellow")
    if summary.busy_share is not None:
        _row(table, "models busy", f"{summary.busy_share:.0%}")
    return table


def stages_table(summary: RunSummary) -> Table:
    """What each stage of a run cost; "retries" counts repeated requests to a store."""
    figures_of = ("rows", "seconds", "read", "written", "requests", "retries", "workers lost")
    table = titled_table("", ("stage", *figures_of))
    for stage in ("decode", "edit", "judge", "write", "commit"):
        figures = summary.stages.get(stage, {})
        if stage == "judge" and not figures:
            continue
        table.add_row(
            stage,
            _count(figures.get("rows", 0)),
            f"{figures.get('seconds', 0):.1f}",
            size_text(figures.get("bytes_read", 0)),
            size_text(figures.get("bytes_written", 0)),
            _count(figures.get("requests", 0)),
            _count(figures.get("retries", 0)),
            _count(figures.get("worker_deaths", 0) + figures.get("device_failures", 0)),
        )
    return table


def quotas_table(rows: Sequence[QuotaRow]) -> Table:
    """Every cell with its candidates, outcomes and quota; of many cells, those that lack most
    edits."""
    columns = tuple(rows[0].cell) if rows else ()
    figures_of = ("candidates", "done", "rejected", "failed", "accepted", "quota", "short by")
    table = titled_table("Quotas", (*columns, *figures_of), texts=len(columns))
    emptiest = sorted(rows, key=lambda row: -row.short_by)[:MOST_CELLS]
    for row in rows if len(rows) <= MOST_CELLS else emptiest:
        figures = (row.candidates, row.done, row.rejected, row.failed, row.accepted)
        table.add_row(
            *(Text(value or "(empty)") for value in row.cell.values()),
            *(_count(figure) for figure in figures),
            "no limit" if row.quota is None else _count(row.quota),
            Text(_count(row.short_by), style="yellow" if row.short_by else ""),
        )
    if len(rows) > MOST_CELLS:
        table.caption = f"and {len(rows) - MOST_CELLS:,} more cells"
    return table


def plan_table(plan: Plan, output: str) -> Table:
    """What a run would do."""
    table = figures_table(f"Plan for {output}")
    if not plan.makes_edits:
        _row(table, "editor: none", "makes no edits, copies sources", "yellow")
    _row(table, "edits", _count(plan.edits_total))
    _row(table, "already done", _count(plan.edits_done))
    if plan.round is not None:
        _row(table, "left out by quotas", _count(plan.edits_skipped_by_quota))
    round_ = "" if plan.round is None else " in the next round"
    _row(table, f"to do{round_}", _count(plan.edits_pending), "bold")
    _row(table, "sources", _count(plan.sources))
    _row(table, "sources to do", _count(plan.groups_pending))
    if plan.sources_refused:
        _row(table, "  not allowed, will fail", _count(plan.sources_refused), "red")
    _not_applicable(table, plan.edits_not_applicable, plan.first_not_applicable)
    _repeated_rows(table, plan.rows_repeated)
    if plan.approximation:
        _row(table, "approximation", plan.approximation, "yellow")
    _row(table, "UNet rows to do", _count(plan.unet_rows))
    if passes := plan.backward_passes:
        _row(table, "  slow: with a backward pass", _count(passes), "yellow")
    _row(table, "images to write", f"about {size_text(plan.output_bytes)}")
    return table


def _repeated_rows(table: Table, rows: int) -> None:
    if rows:
        _row(table, "rows that repeat another one exactly", _count(rows), "yellow")


def _not_applicable(table: Table, edits: int, first: str = "") -> None:
    """Edits that the job's editor cannot make."""
    if edits:
        _row(table, "not applicable", _count(edits), "yellow")
    if first:
        _row(table, "  the first", first)


def status_table(status: RunStatus) -> Table:
    """The progress of a run folder."""
    table, counts = figures_table(f"Status of {status.output}"), status.counts
    pending = "not planned yet" if status.pending is None else _count(status.pending)
    _row(table, "done", _count(status.done))
    _row(table, "to do, by the latest plan", pending)
    if status.edits_skipped_by_quota:
        note = ", for now" if status.is_in_rounds else ""
        _row(table, f"left out by quotas{note}", _count(status.edits_skipped_by_quota))
    _row(table, "accepted", _count(counts.accepted))
    _row(table, "rejected", _count(counts.rejected))
    _reasons(table, counts.rejected_by_reason)
    _row(table, "failed", _count(counts.failed))
    _reasons(table, counts.failed_by_code)
    _not_applicable(table, counts.not_applicable)
    _row(table, "parts", _count(status.parts))
    if status.unadopted_parts:
        _row(table, "parts the next run takes over", _count(status.unadopted_parts))
    if status.edits_per_second is not None:
        of_last = "" if status.is_running else ", while it ran"
        _row(table, f"edits/s{of_last}", f"{status.edits_per_second:.2f}")
    if status.seconds_left is not None:
        _row(table, "time left, about", str(timedelta(seconds=round(status.seconds_left))))
    if counts.total:
        _row(table, "UNet rows per edit", f"{counts.unet_rows / counts.total:.1f}")
    if status.lease is not None and not status.lease.is_released:
        _row(table, "abandoned by" if status.lease.is_over else "in use by", str(status.lease))
    if status.is_silent and status.silent_s is not None:
        silent = timedelta(seconds=round(status.silent_s))
        _row(table, "silent for", f"{silent}: the next run takes the folder over")
    return table


def verification_table(verification: Verification, output: str) -> Table:
    """What `verify` counted; the problems themselves are printed below."""
    table = figures_table(f"Verification of {output}")
    _row(table, "edits planned", _count(verification.planned))
    _row(table, "accepted", _count(verification.accepted))
    _row(table, "rejected", _count(verification.rejected))
    _row(table, "failed", _count(verification.failed))
    _not_applicable(table, verification.not_applicable)
    _row(table, "pending", _count(verification.pending))
    if verification.quotas:
        _row(table, "left out by quotas", _count(verification.edits_skipped_by_quota))
    if verification.not_planned:
        _row(table, "of another job, manifest or model", _count(verification.not_planned))
    _row(table, "images decoded", _count(verification.images_checked))
    _row(table, "problems", _count(verification.problems_total))
    return table


def recomputation_table(found: Recomputation) -> Table:
    """What `verify --recompute` compared; the edits that differ are printed below."""
    from pipeline.verify.recompute import ComparisonVerdict  # loads torch

    table = figures_table(f"Recomputed on {found.device} in {found.dtype}")
    different, not_made = (
        len(found.of(v)) for v in (ComparisonVerdict.DIFFERENT, ComparisonVerdict.NOT_MADE)
    )
    _row(table, "edits compared", _count(found.compared))
    _row(table, "equal bit for bit", _count(len(found.of(ComparisonVerdict.EQUAL))))
    _row(table, "equal within tolerance", _count(len(found.of(ComparisonVerdict.WITHIN_TOLERANCE))))
    _row(table, "different", _count(different), "red" if different else "")
    _row(table, "could not be recomputed", _count(not_made), "yellow" if not_made else "")
    return table


def _row(table: Table, name: str, value: str, style: str = "") -> None:
    table.add_row(Text(name), Text(value, style=style))


def _reasons(table: Table, reasons: Mapping[str, int]) -> None:
    for reason, count in reasons.items():
        _row(table, f"  {reason}", _count(count))

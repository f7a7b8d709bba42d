"""Quotas: at most this many accepted edits of each cell; which edits a run makes for that.

A cell is a combination of values of labels and manifest columns, such as (red, cup). A run goes in
rounds: `select_edits` takes, of every cell, as many edits as it lacks accepted ones, the first of
its candidates in the order of the manifest that have no outcome; when all of them have theirs the
next round is selected, until nothing is. The others are left out by quotas: they are never begun.

The accepted edits of a cell are then the first Q of its candidates that get accepted, in the order
of the manifest, whatever completes first and wherever a run is killed. For let K be the place of
the Q-th candidate that gets accepted, or the last place where there are fewer:

1.  Nothing past K is ever selected. Say that all outcomes so far are of candidates up to K, A of
    them accepted, as is so in the beginning. If fewer than Q ever get accepted, nothing is past K.
    Else Q of those up to K do, and Q - A of these have no outcome yet; a selection is of the first
    Q - A without an outcome, so it ends with the last of these at the latest.
2.  Nothing is selected any more once A = Q, or once no candidate is without an outcome. In the
    first case the Q accepted ones are up to K, where there are no others; in the second, all that
    get accepted are.

A kill leaves outcomes of some of the edits that were selected, and 1 holds for any such set. What
it takes is that the outcome of an edit is its own, not that of its neighbours, and that the
manifest stays. Failed edits have an outcome: the next candidate takes their place. A retry may
fill what a cell still lacks, again in the order of the manifest, and no more; a failed edit whose
cell is full by then is not tried again. So a cell never holds more than its quota, unless its edits
were accepted before there was one.

The cells of a job's quotas, read off its edits while the manifest is streamed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

from pipeline.errors import JobError
from pipeline.job.quotas import Cell, Quotas, cell_text
from pipeline.ledger.outcome import Outcome
from pipeline.manifest.columns import EDIT_TYPE, KNOWN_COLUMNS
from pipeline.manifest.labels import TARGET_LABELS
from pipeline.manifest.rows import OVERRIDES, Problems, WantedEdit
from pipeline.plan.resolved_job import PlannedGroup, ResolvedJob


@dataclass(frozen=True)
class QuotaRow:
    """A cell before and after: its candidates in the manifest, and what became of them.

    Attributes:
        cell: the value of every column of `Quotas.by`.
        candidates: edits that the job means.
        done: those that have an outcome: accepted + rejected + failed.
        quota: None where there is no limit.
        short_by: accepted edits that the quota lacks.
        to_do: edits that the next round takes. 0: the cell is full, or has no more candidates.
    """

    cell: Mapping[str, str]
    candidates: int
    done: int
    accepted: int
    rejected: int
    failed: int
    quota: int | None
    short_by: int
    to_do: int

    @property
    def over_by(self) -> int:
        """Accepted edits past the quota: they were made before it was set."""
        return 0 if self.quota is None else max(0, self.accepted - self.quota)


@dataclass(frozen=True)
class Selection:
    """The edits of a round, with their cells, in the order of the manifest cell by cell.

    `others` counts what was not selected.
    """

    quotas: Quotas
    edits: Mapping[bytes, Cell]
    others: Mapping[Cell, CellCount]

    @property
    def edits_skipped_by_quota(self) -> int:
        """Edits that could be made, and are not in this round."""
        return sum(count.open for count in self.others.values())


@dataclass
class CellCount:
    """Edits of a cell: all of them, those with an outcome, those that could be made."""

    candidates: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    open: int = 0


OutcomeOf: TypeAlias = Callable[[bytes], str | None]
"""The standing outcome of an edit, None where it has none."""
IsOpen: TypeAlias = Callable[[bytes], bool]
"""Whether an edit could be made: those without an outcome in a run, some failed ones in a retry."""


def select_edits(
    edits: Iterable[tuple[Cell, bytes]], quotas: Quotas, outcome_of: OutcomeOf, is_open: IsOpen
) -> Selection:
    """The next round. `edits` are all of the job, in the order of the manifest.

    Holds counts per cell, and ids of at most as many edits of a cell as its quota.
    """
    counts: dict[Cell, CellCount] = {}
    first: dict[Cell, list[bytes]] = {}
    for cell, edit_id in edits:
        if cell not in counts:
            counts[cell], first[cell] = CellCount(), []
        count, quota = counts[cell], quotas.quota_of(cell)
        count.candidates += 1
        outcome = outcome_of(edit_id)
        if outcome is not None:
            count.outcomes[outcome] += 1
        if is_open(edit_id):
            count.open += 1
            if quota is None or len(first[cell]) < quota:
                first[cell].append(edit_id)
    selected: dict[bytes, Cell] = {}
    for cell, count in counts.items():
        for edit_id in first[cell][: _to_do(count, quotas.quota_of(cell))]:
            selected[edit_id] = cell
            count.open -= 1
            outcome = outcome_of(edit_id)
            if outcome is not None:
                count.outcomes[outcome] -= 1
    return Selection(quotas, selected, counts)


def quota_table(selection: Selection, outcome_of: OutcomeOf, is_open: IsOpen) -> list[QuotaRow]:
    """Every cell as it is now, sorted: also in the middle of the round that was selected."""
    counts = {
        cell: CellCount(count.candidates, Counter(count.outcomes), count.open)
        for cell, count in selection.others.items()
    }
    for edit_id, cell in selection.edits.items():
        outcome = outcome_of(edit_id)
        if outcome is not None:
            counts[cell].outcomes[outcome] += 1
        counts[cell].open += is_open(edit_id)
    return [_row(selection.quotas, cell, counts[cell]) for cell in sorted(counts)]


def _to_do(count: CellCount, quota: int | None) -> int:
    """Edits that the next round takes of a cell."""
    return count.open if quota is None else min(count.open, _lacking(count, quota))


def _lacking(count: CellCount, quota: int) -> int:
    return max(0, quota - count.outcomes[Outcome.ACCEPTED])


def _row(quotas: Quotas, cell: Cell, count: CellCount) -> QuotaRow:
    quota = quotas.quota_of(cell)
    return QuotaRow(
        cell=quotas.values_of(cell),
        candidates=count.candidates,
        done=count.outcomes.total(),
        accepted=count.outcomes[Outcome.ACCEPTED],
        rejected=count.outcomes[Outcome.REJECTED],
        failed=count.outcomes[Outcome.FAILED],
        quota=quota,
        short_by=0 if quota is None else _lacking(count, quota),
        to_do=_to_do(count, quota),
    )


_log = logging.getLogger(__name__)
_NO_CELLS = frozenset({"image", TARGET_LABELS})
_Value: TypeAlias = Callable[[PlannedGroup, WantedEdit, dict[str, Any]], Any]
"""A column's value, from an edit, its group and the carried columns of its row."""


def select_round(
    resolved: ResolvedJob, quotas: Quotas, outcome_of: OutcomeOf, is_open: IsOpen
) -> Selection:
    """The edits of a job that its quotas call for next, see `quotas.select_edits`.

    One stream over the manifest; rows with a problem are left out, whoever plans reports them.
    Raises JobError where the quotas name something else than labels and columns.
    """
    selection = select_edits(cells_of_edits(resolved, quotas.by), quotas, outcome_of, is_open)
    values = [quotas.values_of(cell) for cell in selection.others]
    for where, _ in quotas.cells:
        if values and not any(where.items() <= cell.items() for cell in values):
            named = ", ".join(f"{name}={value}" for name, value in where.items())
            _log.warning("quotas.cells: no edit of this job has %s", named)
    return selection


def cells_of_edits(resolved: ResolvedJob, by: Sequence[str]) -> Iterator[tuple[Cell, bytes]]:
    """(cell, edit id) of every edit of a job, in the order of the manifest. Raises JobError."""
    readers = [_reader(resolved, name) for name in by]
    names = [name for name in by if name in resolved.carried_schema.names]
    for groups, carried in resolved.groups(Problems()):
        rows: list[dict[str, Any]] = (
            carried.select(names).to_pylist() if names else [{} for _ in groups]
        )
        for group, row in zip(groups, rows, strict=True):
            for edit_id, edit in group.edits:
                yield tuple(cell_text(read(group, edit, row)) for read in readers), edit_id


def _reader(resolved: ResolvedJob, name: str) -> _Value:
    """How the value of a label or column is read. Raises JobError where there is none."""
    if name in resolved.label_names:
        place = resolved.label_names.index(name)
        return lambda _group, edit, _row: edit.labels[place]
    if name == EDIT_TYPE and resolved.has_edit_types:
        return lambda _group, edit, _row: edit.edit_type
    if name == "target_prompt":
        return lambda _group, edit, _row: edit.target_prompt
    known = (set(KNOWN_COLUMNS) - _NO_CELLS) & resolved.manifest.columns
    if name in known and name in OVERRIDES:
        return lambda group, _edit, _row: getattr(group.source.parameters, name)
    if name in known:
        return lambda group, _edit, _row: getattr(group.source, name)
    carried = resolved.carried_schema
    if name not in carried.names:
        there = sorted({*resolved.label_names, *known, *carried.names, "target_prompt"})
        raise JobError(
            f"quotas.by: {name!r} is not a label or a column of the manifest; there are "
            f"{', '.join(there)}"
        )
    kind = carried.field(name).type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise JobError(f"quotas.by: column {name} is {kind}; a cell needs text or numbers")
    return lambda _group, _edit, row: row[name]

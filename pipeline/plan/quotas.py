"""Quotas: selects the edits of a run so that each cell gets at most Q accepted edits, its quota.

A cell is a combination of values of labels and manifest columns, such as (red, cup); the cells of a
job are found while its manifest is streamed. The edits with a cell's values are its candidates. A
run goes in rounds. `select_edits` selects, for every cell, as many edits as it lacks accepted ones:
the first candidates without an outcome, in the order of the manifest. When all of these have an
outcome, the next round is selected, until a selection is empty. The other edits are left out by
quotas: they are never begun.

The accepted edits of a cell are then the first Q acceptable candidates in the order of the
manifest, regardless of which edit completes first and of when a run is killed. Proof: let K be the
position of the Q-th acceptable candidate, or the last position if there are fewer than Q.

1.  Nothing after K is ever selected. Assume that all outcomes so far belong to candidates up to K,
    and that A of them are accepted; this is true at the beginning. If fewer than Q candidates are
    acceptable, nothing is after K. Otherwise Q candidates up to K are acceptable, and Q - A of them
    have no outcome yet. A selection takes the first Q - A candidates without an outcome, so it ends
    at the last of these at the latest.
2.  Selection ends when A = Q, or when every candidate has an outcome. In the first case the Q
    accepted ones are all acceptable candidates up to K. In the second case all acceptable
    candidates are accepted.

A killed run leaves outcomes of some of the selected edits, and 1 holds for any such subset. This
requires that an edit's outcome does not depend on its neighbours, and that the manifest does not
change. A failed edit has an outcome, so the next candidate takes its place. A retry selects at most
as many edits as a cell still lacks, again in the order of the manifest; a failed edit of a full
cell is not retried. So a cell never has more accepted edits than its quota, unless they were
accepted before the quota was set.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import JobError
from pipeline.job.quotas import Cell, Quotas, cell_text
from pipeline.ledger.by_id import RowsById
from pipeline.ledger.id_set import IdMap, packed_ids, unpacked
from pipeline.ledger.outcome import ID_TYPE, Outcome
from pipeline.manifest.columns import EDIT_TYPE, KNOWN_COLUMNS
from pipeline.manifest.features import class_names, features_of
from pipeline.manifest.labels import TARGET_LABELS
from pipeline.manifest.rows import OVERRIDES, Problems, WantedEdit
from pipeline.manifest.words import has_words, words_of
from pipeline.plan.resolved_job import PlannedGroup, Repeats, ResolvedJob


@dataclass(frozen=True)
class QuotaRow:
    """How full a cell is: its candidates in the manifest, and their outcomes.

    Attributes:
        cell: the value of every column of `Quotas.by`.
        candidates: edits of the job that belong to the cell.
        done: candidates with an outcome: accepted, rejected, failed, or not applicable.
        quota: at most this many accepted edits; None: no limit.
        short_by: how many accepted edits are missing to fill the quota.
        to_do: how many edits the next round takes. 0: the cell is full, or has no more candidates.
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
        """Accepted edits beyond the quota, which were made before it was set."""
        return 0 if self.quota is None else max(0, self.accepted - self.quota)


@dataclass(frozen=True)
class Selection:
    """The edits of a round: a set of ids, each with the place of its cell in `others`.

    `others` counts the edits that were not selected.
    """

    quotas: Quotas
    edits: IdMap
    others: Mapping[Cell, CellCount]

    @property
    def edits_skipped_by_quota(self) -> int:
        """How many edits could be made, but are not in this round."""
        return sum(count.open for count in self.others.values())


@dataclass
class CellCount:
    """Edits of a cell: all of them, those by outcome, and those that could be made (`open`).

    `number`: the cell's place among all cells.
    """

    number: int
    quota: int | None
    candidates: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    open: int = 0


_WAITING_EDITS = 1 << 12
OutcomeOf: TypeAlias = Callable[[bytes], str | None]
"""Returns the standing outcome of an edit; None if it has none."""
IsOpen: TypeAlias = Callable[[bytes], bool]
"""Returns whether an edit can be made: in a run if it has no outcome, in a retry if it failed."""


def select_edits(
    edits: Iterable[tuple[Cell, bytes]], quotas: Quotas, outcome_of: OutcomeOf, is_open: IsOpen
) -> Selection:
    """Selects the next round. `edits` are all edits of the job, in the order of the manifest.

    Keeps counts per cell, and 17 to 20 bytes of each edit that it selects.
    """
    counts: dict[Cell, CellCount] = {}
    with _Candidates() as candidates:
        for cell, edit_id in edits:
            count = counts.get(cell)
            if count is None:
                count = counts[cell] = CellCount(number=len(counts), quota=quotas.quota_of(cell))
            count.candidates += 1
            outcome = outcome_of(edit_id)
            if outcome is not None:
                count.outcomes[outcome] += 1
            if is_open(edit_id):
                if count.quota is None or count.open < count.quota:
                    candidates.add(edit_id, count.number, count.open)
                count.open += 1
        of_cell = list(counts.values())
        selected = IdMap(np.min_scalar_type(len(counts)))
        for ids, numbers in candidates.first([_to_do(count, count.quota) for count in of_cell]):
            selected.put(ids, numbers)
            for edit_id, number in zip(unpacked(ids), numbers.tolist(), strict=True):
                of_cell[number].open -= 1
                outcome = outcome_of(edit_id)
                if outcome is not None:
                    of_cell[number].outcomes[outcome] -= 1
    selected.compact()
    return Selection(quotas, selected, counts)


class _Candidates(ExitStack):
    """The open edits of every cell that a round may take, on disk."""

    _SCHEMA = pa.schema(
        [
            pa.field("edit_id", ID_TYPE, nullable=False),
            pa.field("cell", pa.int32()),
            pa.field("place", pa.int64()),
        ]
    )

    def __init__(self) -> None:
        super().__init__()
        self._rows = self.enter_context(RowsById(self._SCHEMA))
        self._waiting: list[tuple[bytes, int, int]] = []

    def add(self, edit_id: bytes, cell: int, place: int) -> None:
        """Adds an edit. `place`: how many open edits of its cell came before it."""
        self._waiting.append((edit_id, cell, place))
        if len(self._waiting) >= _WAITING_EDITS:
            self._flush()

    def first(self, edits: Sequence[int]) -> Iterator[tuple[bytes, NDArray[np.int64]]]:
        """The first edits of every cell, as many as `edits` has for it: (packed ids, cells)."""
        self._flush()
        at_most = np.array([*edits, 0], np.int64)
        for table in filter(len, self._rows.buckets()):
            cells, places = (table[name].to_numpy() for name in ("cell", "place"))
            is_first = places < at_most[cells]
            chosen = table.filter(pa.array(is_first))
            yield packed_ids(chosen), cells[is_first].astype(np.int64)

    def _flush(self) -> None:
        if not self._waiting:
            return
        columns = zip(zip(*self._waiting, strict=True), self._SCHEMA.types, strict=True)
        arrays = [pa.array(values, kind) for values, kind in columns]
        self._rows.add(pa.table(arrays, schema=self._SCHEMA))
        self._waiting = []


def quota_table(selection: Selection, outcome_of: OutcomeOf, is_open: IsOpen) -> list[QuotaRow]:
    """All cells as they are now, sorted; may be called in the middle of the selected round."""
    counts = {
        cell: replace(count, outcomes=Counter(count.outcomes))
        for cell, count in selection.others.items()
    }
    of_cell = list(counts.values())
    for edit_id, number in selection.edits.items():
        outcome = outcome_of(edit_id)
        if outcome is not None:
            of_cell[number].outcomes[outcome] += 1
        of_cell[number].open += is_open(edit_id)
    return [_row(selection.quotas, cell, counts[cell]) for cell in sorted(counts)]


def _to_do(count: CellCount, quota: int | None) -> int:
    """How many edits of a cell the next round takes."""
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
"""Returns a column's value, given a group, one of its edits, and the row's carried columns."""


def select_round(
    resolved: ResolvedJob,
    quotas: Quotas,
    outcome_of: OutcomeOf,
    is_open: IsOpen,
    repeats: Repeats,
) -> Selection:
    """Selects the edits of a job's next round, see `select_edits`.

    Streams the manifest once. `repeats`: what its survey found. Raises JobError if the quotas name
    anything but labels and columns.
    """
    edits = cells_of_edits(resolved, quotas.by, repeats)
    selection = select_edits(edits, quotas, outcome_of, is_open)
    values = [quotas.values_of(cell) for cell in selection.others]
    for where, _ in quotas.cells:
        if values and not any(where.items() <= cell.items() for cell in values):
            named = ", ".join(f"{name}={value}" for name, value in where.items())
            _log.warning("quotas.cells: no edit of this job has %s", named)
    return selection


def cells_of_edits(
    resolved: ResolvedJob, by: Sequence[str], repeats: Repeats
) -> Iterator[tuple[Cell, bytes]]:
    """(cell, edit id) of every edit of a job, in the order of the manifest. Raises JobError."""
    readers = [_reader(resolved, name) for name in by]
    names = [name for name in by if name in resolved.carried_schema.names]
    for groups, carried in resolved.groups(Problems(), repeats):
        rows: list[dict[str, Any]] = (
            carried.select(names).to_pylist() if names else [{} for _ in groups]
        )
        for group, row in zip(groups, rows, strict=True):
            for edit_id, edit in group.edits:
                yield tuple(cell_text(read(group, edit, row)) for read in readers), edit_id


def refuse_unknown_columns(resolved: ResolvedJob, by: Sequence[str]) -> None:
    """Raises JobError if one of these is not a label or column, or has no values for cells."""
    for name in by:
        _reader(resolved, name)


def _reader(resolved: ResolvedJob, name: str) -> _Value:
    """Returns a reader of a label's or column's value. Raises JobError if it does not exist."""
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
    if not has_words(kind):
        raise JobError(f"quotas.by: column {name} is {kind}; a cell needs text or numbers")
    words = words_of(kind, class_names(features_of(carried).get(name)))
    return lambda _group, _edit, row: words(row[name])

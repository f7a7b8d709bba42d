"""The cells of a job's quotas, read off its edits while the manifest is streamed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from pipeline.errors import JobError
from pipeline.intent import Intent, PlannedGroup
from pipeline.manifest import EDIT_TYPE, KNOWN_COLUMNS
from pipeline.manifest_row import OVERRIDES, Problems, WantedEdit
from pipeline.quotas import Cell, IsOpen, OutcomeOf, Quotas, Selection, cell_text, select_edits
from pipeline.target_labels import TARGET_LABELS

_log = logging.getLogger(__name__)
_NO_CELLS = frozenset({"image", TARGET_LABELS})
_Value: TypeAlias = Callable[[PlannedGroup, WantedEdit, dict[str, Any]], Any]
"""A column's value, from an edit, its group and the carried columns of its row."""


def select_round(
    intent: Intent, quotas: Quotas, outcome_of: OutcomeOf, is_open: IsOpen
) -> Selection:
    """The edits of a job that its quotas call for next, see `quotas.select_edits`.

    One stream over the manifest; rows with a problem are left out, whoever plans reports them.
    Raises JobError where the quotas name something else than labels and columns.
    """
    selection = select_edits(cells_of_edits(intent, quotas.by), quotas, outcome_of, is_open)
    values = [quotas.values_of(cell) for cell in selection.others]
    for where, _ in quotas.cells:
        if values and not any(where.items() <= cell.items() for cell in values):
            named = ", ".join(f"{name}={value}" for name, value in where.items())
            _log.warning("quotas.cells: no edit of this job has %s", named)
    return selection


def cells_of_edits(intent: Intent, by: Sequence[str]) -> Iterator[tuple[Cell, bytes]]:
    """(cell, edit id) of every edit of a job, in the order of the manifest. Raises JobError."""
    readers = [_reader(intent, name) for name in by]
    names = [name for name in by if name in intent.carried_schema.names]
    for groups, carried in intent.groups(Problems()):
        rows: list[dict[str, Any]] = (
            carried.select(names).to_pylist() if names else [{} for _ in groups]
        )
        for group, row in zip(groups, rows, strict=True):
            for edit_id, edit in group.edits:
                yield tuple(cell_text(read(group, edit, row)) for read in readers), edit_id


def _reader(intent: Intent, name: str) -> _Value:
    """How the value of a label or column is read. Raises JobError where there is none."""
    if name in intent.label_names:
        place = intent.label_names.index(name)
        return lambda _group, edit, _row: edit.labels[place]
    if name == EDIT_TYPE and intent.has_edit_types:
        return lambda _group, edit, _row: edit.edit_type
    if name == "target_prompt":
        return lambda _group, edit, _row: edit.target_prompt
    known = (set(KNOWN_COLUMNS) - _NO_CELLS) & intent.manifest.columns
    if name in known and name in OVERRIDES:
        return lambda group, _edit, _row: getattr(group.source.parameters, name)
    if name in known:
        return lambda group, _edit, _row: getattr(group.source, name)
    carried = intent.carried_schema
    if name not in carried.names:
        there = sorted({*intent.label_names, *known, *carried.names, "target_prompt"})
        raise JobError(
            f"quotas.by: {name!r} is no label and no column of the manifest; there are "
            f"{', '.join(there)}"
        )
    kind = carried.field(name).type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise JobError(f"quotas.by: column {name} is {kind}; a cell needs text or numbers")
    return lambda _group, _edit, row: row[name]

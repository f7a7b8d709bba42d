"""Reads tables of edits that a person has judged, from which thresholds are chosen."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from fpe_core import SCORES, EditScores
from fpe_core.judging.calibration import JudgedEdit
from fpe_core.judging.rules import OTHER_TYPES
from pipeline.errors import JobError

Judgements = dict[str, list[JudgedEdit]]


def read_judgements(file: pathlib.Path) -> Judgements:
    """Judged edits by type, from a Parquet or CSV table.

    Columns: `good` (true or false, or 1 and 0) and scores by their names. `edit_type` and
    `source_id` are optional; `source_id` shows which edits have the same source. Other columns,
    such as those of a run's metadata, are ignored. Rows whose `good` is empty are left out.

    Raises JobError if the table cannot be read, or lacks columns or judged rows.
    """
    try:
        table = pa.csv.read_csv(file) if file.suffix == ".csv" else pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"{file} cannot be read as Parquet or CSV: {error}") from error
    names = [name for name in table.column_names if name in SCORES]
    if "good" not in table.column_names or not names:
        raise JobError(
            f"{file} needs a column `good` and at least one score, named as in metadata; it has "
            f"{', '.join(table.column_names)}"
        )
    judged: Judgements = {}
    for number, row in enumerate(table.to_pylist()):
        if row["good"] is None:
            continue
        if row["good"] not in (True, False):
            raise JobError(f"{file}, row {number}: good must be true or false, got {row['good']!r}")
        scores = {name: _score(file, number, name, row[name]) for name in names}
        edit_type = str(row.get("edit_type") or OTHER_TYPES)
        edit = JudgedEdit(EditScores(**scores), bool(row["good"]), row.get("source_id"))
        judged.setdefault(edit_type, []).append(edit)
    if not judged:
        raise JobError(f"{file} has no rows whose `good` is true or false")
    return judged


def of_types(judged: Judgements, types: Sequence[str] | None, file: pathlib.Path) -> Judgements:
    """The edits of the given types, in that order; all if `types` is None.

    Raises JobError for a type without edits.
    """
    for name in types or ():
        if name not in judged:
            raise JobError(f"{file} has no edits of {name}; it has {', '.join(judged)}")
    return {name: judged[name] for name in types or judged}


def _score(file: pathlib.Path, row: int, name: str, value: Any) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise JobError(f"{file}, row {row}: {name} must be a number, got {value!r}")
    return float(value)

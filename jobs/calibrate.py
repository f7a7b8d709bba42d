"""`fpe calibrate`: thresholds for a job's judge, from edits that somebody has judged."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml
from rich import box
from rich.table import Table

from fpe_core import SCORES, EditScores, ParameterError
from fpe_core.acceptance import OTHER_TYPES, Rules
from fpe_core.calibration import JudgedEdit, Quality, fit_rules, quality_of
from pipeline.errors import JobError

CURVE = (0.5, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0)
"""Precisions that are aimed at, to see what recall is left."""

Judgements = dict[str, list[JudgedEdit]]


def read_judgements(file: pathlib.Path) -> Judgements:
    """Judged edits by type, from a Parquet or CSV table.

    Columns: `good` (true or false, or 1 and 0), `edit_type` (optional), and scores by their names.
    Others do not matter. Raises JobError.
    """
    try:
        table = pa.csv.read_csv(file) if file.suffix == ".csv" else pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise JobError(f"{file} cannot be read as Parquet or CSV: {error}") from error
    names = [name for name in table.column_names if name in SCORES]
    if "good" not in table.column_names or not names:
        raise JobError(
            f"{file} needs a column `good` and at least one score as the ledger names it, has "
            f"{', '.join(table.column_names)}"
        )
    judged: Judgements = {}
    for number, row in enumerate(table.to_pylist()):
        if row["good"] not in (True, False):
            raise JobError(f"{file}, row {number}: good must be true or false, got {row['good']!r}")
        scores = {name: _score(file, number, name, row[name]) for name in names}
        edit_type = str(row.get("edit_type") or OTHER_TYPES)
        judged.setdefault(edit_type, []).append(JudgedEdit(EditScores(**scores), bool(row["good"])))
    if not judged:
        raise JobError(f"{file} has no rows")
    return judged


def _score(file: pathlib.Path, row: int, name: str, value: Any) -> float | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise JobError(f"{file}, row {row}: {name} must be a number, got {value!r}")
    return float(value)


def fit(judged: Judgements, precision: float) -> Rules:
    """Rules for every type that was judged. Raises JobError."""
    by_type = {}
    for edit_type, edits in judged.items():
        try:
            by_type[edit_type] = fit_rules(edits, precision)
        except ParameterError as error:
            raise JobError(f"edits of {edit_type}: {error}") from error
    return Rules(by_type)


def rules_yaml(rules: Rules) -> str:
    """A job file's `judge.rules`."""
    return str(yaml.safe_dump({"judge": {"rules": rules.to_dict()}}, sort_keys=False))


def quality_table(rules: Rules, judged: Judgements, title: str) -> Table:
    """What rules make of judged edits, by type."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("edits of")
    for heading in ("judged", "good", "accepted", "precision", "recall"):
        table.add_column(heading, justify="right")
    for edit_type, edits in judged.items():
        table.add_row(edit_type, *_cells(quality_of(rules.of(edit_type), edits)))
    return table


def curve_table(judged: Judgements) -> Table:
    """What recall is left at each precision that is aimed at; both on the edits fitted to."""
    table = Table(title="Curve", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("edits of")
    for heading in ("aimed at", "accepted", "precision", "recall"):
        table.add_column(heading, justify="right")
    for edit_type, edits in judged.items():
        for precision in CURVE:
            cells = _cells(quality_of(fit_rules(edits, precision), edits))
            table.add_row(edit_type, f"{precision:.2f}", *cells[2:])
    return table


def _cells(quality: Quality) -> Sequence[str]:
    shares = (quality.precision, quality.recall)
    return (
        str(quality.edits),
        str(quality.good),
        str(quality.accepted),
        *("-" if share is None else f"{share:.3f}" for share in shares),
    )

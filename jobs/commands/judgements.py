"""Reads tables of edits that a person has judged, from which thresholds are chosen."""

from __future__ import annotations

import csv
import decimal
import gzip
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeAlias

import pyarrow as pa
import pyarrow.dataset

from fpe_core import SCORES, EditScores
from fpe_core.judging.calibration import JudgedEdit
from fpe_core.judging.rules import OTHER_TYPES
from pipeline.errors import JobError

Judgements = dict[str, list[JudgedEdit]]
Row: TypeAlias = Mapping[str, Any]

_GOOD, _TYPE, _SOURCE = "good", "edit_type", "source_id"
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
_SPREADSHEETS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".numbers")
_ROWS_PER_BATCH = 8192
_LONGEST_CELL = 1 << 28
_MISSING = {"", "nan", "na", "n/a", "#n/a", "<na>", "null", "none"}
_TRUE = {"true", "t", "yes", "y", "1", "1.0"}
_FALSE = {"false", "f", "no", "n", "0", "0.0"}


def read_judgements(file: pathlib.Path) -> Judgements:
    """Judged edits by type, from a Parquet table or a text table (CSV).

    Columns: `good` (true or false, yes or no, 1 or 0) and scores by their names. `edit_type` and
    `source_id` are optional; `source_id` shows which edits have the same source. Other columns,
    such as those of a run's metadata, are ignored. Rows whose `good` is empty are left out. A text
    table is read as pandas and spreadsheets write it: with a byte order mark or in UTF-16, with
    commas, semicolons or tabs, and with decimal commas if it has no commas between columns.

    Only the judged rows are kept in memory. Raises JobError if the table cannot be read, or lacks
    columns or judged rows.
    """
    name = file.name.lower()
    if name.endswith(_SPREADSHEETS):
        raise JobError(
            f"{file} is a spreadsheet: save it as CSV (in Excel: CSV UTF-8), and name that file"
        )
    is_text = name.removesuffix(".gz").endswith(_TEXT_SUFFIXES)
    judged: Judgements = {}
    try:
        for number, row in enumerate(_text_rows(file) if is_text else _parquet_rows(file)):
            is_good = _truth(file, number, row[_GOOD])
            if is_good is None:
                continue
            scores = {
                name: _score(file, number, name, value)
                for name, value in row.items()
                if name in SCORES
            }
            edit = JudgedEdit(EditScores(**scores), is_good, _plain(row.get(_SOURCE)))
            judged.setdefault(str(_plain(row.get(_TYPE)) or OTHER_TYPES), []).append(edit)
    except UnicodeDecodeError as error:
        raise JobError(
            f"{file} is not UTF-8: save it as CSV again, in Excel as CSV UTF-8 ({error})"
        ) from error
    except (OSError, EOFError, csv.Error, pa.ArrowException) as error:
        raise JobError(f"{file} cannot be read as Parquet or CSV: {error}") from error
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


def _columns(file: pathlib.Path, names: Sequence[str]) -> list[str]:
    """The columns that are read. Raises JobError if one is missing, or there twice."""
    found = [name for name in names if name in {*SCORES, _GOOD, _TYPE, _SOURCE}]
    if _GOOD not in found or not SCORES.intersection(found):
        raise JobError(
            f"{file} needs a column `good` and at least one score, named as in metadata; it has "
            f"{', '.join(names)}"
        )
    if twice := [name for name in dict.fromkeys(found) if found.count(name) > 1]:
        raise JobError(f"{file} has the column {twice[0]} twice")
    return found


def _parquet_rows(file: pathlib.Path) -> Iterator[Row]:
    data = pa.dataset.dataset(file, format="parquet", partitioning="hive")
    columns = _columns(file, data.schema.names)
    for batch in data.to_batches(columns=columns, batch_size=_ROWS_PER_BATCH, batch_readahead=1):
        yield from batch.to_pylist()


def _text_rows(file: pathlib.Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)  # of all readers in this process; the default is 128 kB
    with _open_text(file) as text:
        separator, header = _header(text)
        columns = {name: header.index(name) for name in _columns(file, header)}
        has_decimal_commas = separator != ","
        for number, cells in enumerate(filter(None, csv.reader(text, delimiter=separator))):
            if any(cells[len(header) :]):
                raise JobError(
                    f"{file}, row {number}: has {len(cells)} cells for {len(header)} columns"
                )
            row = {name: cells[at] if at < len(cells) else "" for name, at in columns.items()}
            if has_decimal_commas:
                row |= {name: row[name].replace(",", ".") for name in row if name in SCORES}
            yield row


def _open_text(file: pathlib.Path) -> TextIO:
    opened = gzip.open if file.name.lower().endswith(".gz") else open
    with opened(file, "rb") as data:
        is_wide = data.read(2) in (b"\xff\xfe", b"\xfe\xff")
    return opened(file, "rt", encoding="utf-16" if is_wide else "utf-8-sig", newline="")


def _header(text: TextIO) -> tuple[str, list[str]]:
    """The separator of cells, and the names of the columns. Leaves `text` at the first row."""
    line = text.readline()
    if line.startswith("sep=") and len(line.rstrip()) == len("sep=,"):  # Excel's own hint
        line = text.readline()
    headers = {each: next(csv.reader([line], delimiter=each), []) for each in (",", ";", "\t", "|")}
    separator = max(headers, key=lambda each: (_GOOD in headers[each], len(headers[each])))
    return separator, [name.strip() for name in headers[separator]]


def _plain(value: Any) -> Any:
    """The value, or None for one that stands for an empty cell."""
    if isinstance(value, str):
        return None if value.strip().lower() in _MISSING else value.strip()
    return None if isinstance(value, float) and math.isnan(value) else value


def _truth(file: pathlib.Path, row: int, cell: Any) -> bool | None:
    value = _plain(cell)
    text = str(value).lower()
    if value is None:
        return None
    if text in _TRUE or value == 1:
        return True
    if text in _FALSE or value == 0:
        return False
    raise JobError(f"{file}, row {row}: good must be true or false, got {cell!r}")


def _score(file: pathlib.Path, row: int, name: str, cell: Any) -> float | None:
    value = _plain(cell)
    if value is None:
        return None
    try:
        if isinstance(value, str | int | float | decimal.Decimal) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise JobError(f"{file}, row {row}: {name} must be a number, got {cell!r}")

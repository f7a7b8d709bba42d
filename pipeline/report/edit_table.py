"""Reads all edits of a run into one table: their standing outcomes, with prompts and labels.

Only the run folder is read: `.ledger` for outcomes and scores, `.plan` for prompts and labels, and
the parts' metadata for edits whose work list is gone. They are joined on disk (`ledger.by_id`), and
the table lies in a temporary file, so its size is not a question of memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.in_order import in_order
from pipeline.ledger.by_id import RowsById, numbered
from pipeline.ledger.ledger import LEDGER_FOLDER, Ledger
from pipeline.ledger.outcome import ID_TYPE, OUTCOME_SCHEMA
from pipeline.ledger.parts import METADATA_FILE
from pipeline.plan.ids import content_id, source_key_of_prompt
from pipeline.plan.plan import PLAN_FILE, PLAN_FOLDER
from pipeline.storage.folder import Folder

LABEL_PREFIX = "label:"
"""Prefix of label columns, so that a label's name cannot clash with another column."""
_THREADS = 16
_WORK_COLUMNS = ["source_id", "id", "source_prompt", "seed", "synthetic", "edits"]


@dataclass(frozen=True)
class EditTable:
    """The edits of a run.

    Attributes:
        rows: one row per edit, sorted by edit_id. It has the columns of OUTCOME_SCHEMA, `id`,
            `source_prompt` ("" if unknown), `source_key` (16 bytes, the same in every run on that
            source), and a column "label:<name>" (text or null) for every label.
        labels: the names of the labels, in the order of the job.
        unet_rows, seconds: the cost of all attempts, including outcomes that were replaced.
    """

    rows: pa.Table
    labels: tuple[str, ...]
    unet_rows: float
    seconds: float


def read_edits(folder: Folder, labels: Sequence[str] = ()) -> EditTable:
    """All committed edits of a run folder. Raises StorageError if there is no run, and
    LedgerError."""
    if not folder.exists(LEDGER_FOLDER):
        raise StorageError(f"{folder.url}: no {LEDGER_FOLDER} there; give the output of a job")
    return edits_so_far(folder, labels)


def edits_so_far(folder: Folder, labels: Sequence[str] = ()) -> EditTable:
    """Same, but an empty table if nothing is committed yet. Raises StorageError and LedgerError."""
    schema, unet_rows, seconds = _description_schema(labels), 0.0, 0.0
    with (
        RowsById(OUTCOME_SCHEMA) as outcomes,
        RowsById(schema) as described,
        RowsById(schema) as in_parts,
    ):
        for table in Ledger(folder).outcomes():
            outcomes.add(table)
            unet_rows += float(np.nansum(table["unet_rows"].to_numpy()))
            seconds += float(np.nansum(table["seconds"].to_numpy()))
        with ThreadPoolExecutor(_THREADS) as pool:
            for table in _of_work_lists(folder, schema, pool):
                described.add(table)
            parts = sorted(_parts_of_unknown(outcomes, described))
            for table in in_order(pool, lambda p: _of_part(folder, p, schema), parts, _THREADS):
                in_parts.add(table)
        rows = on_disk(_standing_and_described(outcomes, described, in_parts), _rows_schema(schema))
    return EditTable(rows=rows, labels=tuple(labels), unet_rows=unet_rows, seconds=seconds)


def standing_outcomes(outcomes: RowsById) -> Iterator[pa.Table]:
    """The latest outcome of every edit, sorted by edit_id, bucket by bucket.

    `outcomes`: those of a ledger, added in the order of commits.
    """
    for table in outcomes.buckets():
        ids, (place,) = numbered(table)
        latest = np.empty(len(ids), np.int64)
        latest[place] = np.arange(len(place))  # of several the last counts
        yield table.take(pa.array(latest))


def on_disk(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """The tables as one, which lies in a temporary file and is mapped into memory.

    The system reads pages of it as they are needed, and drops them when memory is short.
    """
    with tempfile.TemporaryDirectory(prefix="fpe-table-") as scratch:
        path = str(Path(scratch) / "rows.arrow")
        with pa.ipc.new_file(path, schema) as writer:
            for table in tables:
                writer.write_table(table)
        return pa.ipc.open_file(pa.memory_map(path)).read_all()  # stays mapped without its name


def _parts_of_unknown(outcomes: RowsById, described: RowsById) -> set[str]:
    """The parts of the edits that no work list describes."""
    parts: set[str] = set()
    for standing, known in zip(standing_outcomes(outcomes), described.buckets(), strict=True):
        is_known = pc.is_in(standing["edit_id"], value_set=known["edit_id"].combine_chunks())
        parts.update(pc.unique(standing.filter(pc.invert(is_known))["part"]).to_pylist())
    return parts - {""}


def _standing_and_described(*readers: RowsById) -> Iterator[pa.Table]:
    outcomes, *descriptions = readers
    of_buckets = zip(*(each.buckets() for each in descriptions), strict=True)
    for standing, known in zip(standing_outcomes(outcomes), of_buckets, strict=True):
        yield _with_description(standing, pa.concat_tables(known))


def _with_description(outcomes: pa.Table, known: pa.Table) -> pa.Table:
    """The columns of both. Without a description a source is known by its id."""
    place = pc.index_in(outcomes["edit_id"], value_set=known["edit_id"].combine_chunks())
    instead = {"id": "", "source_prompt": "", "source_key": outcomes["source_id"]}
    for name in known.column_names:
        if name != "edit_id":
            column = known[name].take(place)
            if name in instead:
                column = pc.coalesce(column, instead[name])
            outcomes = outcomes.append_column(name, column)
    return outcomes


def _rows_schema(described: pa.Schema) -> pa.Schema:
    return pa.schema([*OUTCOME_SCHEMA, *(item for item in described if item.name != "edit_id")])


def _description_schema(labels: Sequence[str]) -> pa.Schema:
    return pa.schema(
        [
            pa.field("edit_id", ID_TYPE),
            pa.field("id", pa.string()),
            pa.field("source_prompt", pa.string()),
            pa.field("source_key", ID_TYPE),
            *(pa.field(f"{LABEL_PREFIX}{name}", pa.string()) for name in labels),
        ]
    )


def planned_labels(folder: Folder) -> tuple[str, ...]:
    """The labels of all jobs that were planned in this folder. Raises StorageError."""
    return tuple(dict.fromkeys(name for _, labels in _plans(folder) for name in labels))


def _of_work_lists(folder: Folder, schema: pa.Schema, pool: Executor) -> Iterator[pa.Table]:
    for files, labels in _plans(folder):
        there = [file for file in files if folder.exists(file)]
        read = partial(_of_work_list, folder, schema=schema, labels=labels)
        yield from in_order(pool, read, there, _THREADS)


def _plans(folder: Folder) -> Iterator[tuple[list[str], list[str]]]:
    """The work files and labels of every plan. Raises StorageError."""
    for plan in folder.list_folders(PLAN_FOLDER):
        path = f"{PLAN_FOLDER}/{plan}/{PLAN_FILE}"
        if not folder.exists(path):
            continue  # planning was interrupted
        try:
            described = json.loads(folder.read(path))
            yield described["work_files"], described["label_names"]
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{folder.url_of(path)} is damaged: {error}") from error


def _of_work_list(folder: Folder, path: str, schema: pa.Schema, labels: Sequence[str]) -> pa.Table:
    """The edits of a work list. Does not read the images in it. Raises StorageError."""
    try:
        with folder.open_read(path) as file:
            groups = pq.read_table(file, columns=_WORK_COLUMNS)
        edits = groups["edits"].combine_chunks()
        parents, flat = pc.list_parent_indices(edits), edits.flatten()
        keys = pa.array(map(_source_key, groups.drop_columns(["edits"]).to_pylist()), ID_TYPE)
        columns = {
            "edit_id": flat.field("edit_id"),
            "id": groups["id"].take(parents),
            "source_prompt": groups["source_prompt"].take(parents),
            "source_key": keys.take(parents),
        }
        for number, name in enumerate(labels):
            columns[f"{LABEL_PREFIX}{name}"] = pc.list_element(flat.field("labels"), number)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise StorageError(
            f"{folder.url_of(path)} is damaged or not a work list ({error}); move it away: then "
            "only the prompts and labels of rejected and failed edits are missing"
        ) from error
    rows = len(flat)
    return pa.table(
        [columns.get(item.name, pa.nulls(rows, item.type)) for item in schema], schema=schema
    )


def _source_key(row: Mapping[str, Any]) -> bytes:
    """The source's id. For a synthetic source a hash of prompt and seed, because its id depends on
    the parameters too."""
    if not row["synthetic"]:
        return cast(bytes, row["source_id"])
    return content_id("source", *source_key_of_prompt(row["id"], row["source_prompt"], row["seed"]))


def _of_part(folder: Folder, part: str, schema: pa.Schema) -> pa.Table:
    """The edits of a part that its metadata describes; none if the metadata is gone."""
    path = f"{part}/{METADATA_FILE}"
    if not folder.exists(path):
        return schema.empty_table()
    try:
        with folder.open_read(path) as file:
            names = set(pq.read_schema(file).names)
            wanted = {name: name.removeprefix(LABEL_PREFIX) for name in schema.names}
            wanted["source_key"] = "source_id"
            read = pq.read_table(file, columns=sorted(set(wanted.values()) & names))
    except pa.ArrowException as error:
        raise StorageError(f"{folder.url_of(path)} is damaged: {error}") from error
    columns = [_column(read, wanted[item.name], item.type) for item in schema]
    return pa.table(columns, schema=schema)


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    """A metadata column. Ids, which are text there, are converted to bytes."""
    if name not in table.column_names:
        return pa.nulls(len(table), kind)
    if kind != ID_TYPE:
        return table[name].cast(kind)
    values: list[Any] = [bytes.fromhex(text) for text in table[name].to_pylist()]
    return pa.array(values, kind)

"""Reads all edits of a run into one table: their standing outcomes, with prompts and labels.

Only the run folder is read: `.ledger` for outcomes and scores, `.plan` for prompts and labels, and
the parts' metadata for edits whose work list is gone. A row takes about 400 bytes of memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StorageError
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
    files = list(Ledger(folder).outcomes())
    outcomes = standing_outcomes(files)
    known = _described(folder, outcomes, labels)
    place = pc.index_in(outcomes["edit_id"], value_set=known["edit_id"].combine_chunks())
    for name in known.column_names:
        if name != "edit_id":
            outcomes = outcomes.append_column(name, known[name].take(place))
    # Without a description a source is known by its id.
    for name, instead in (("id", ""), ("source_prompt", ""), ("source_key", outcomes["source_id"])):
        at = outcomes.column_names.index(name)
        outcomes = outcomes.set_column(at, name, pc.coalesce(outcomes[name], instead))
    return EditTable(
        rows=outcomes.combine_chunks(),
        labels=tuple(labels),
        unet_rows=sum(float(np.nansum(t["unet_rows"].to_numpy())) for t in files),
        seconds=sum(float(np.nansum(t["seconds"].to_numpy())) for t in files),
    )


def standing_outcomes(files: Sequence[pa.Table]) -> pa.Table:
    """The latest outcome of every edit, sorted by edit_id. `files`: those of a ledger, in order."""
    seen: set[bytes] = set()
    kept = []
    for table in reversed(files):
        is_latest = []
        for edit_id in table["edit_id"].to_pylist():
            is_latest.append(edit_id not in seen)
            seen.add(edit_id)
        kept.append(table.filter(pa.array(is_latest, pa.bool_())))
    together = pa.concat_tables(kept) if kept else OUTCOME_SCHEMA.empty_table()
    return together.sort_by("edit_id")


def _described(folder: Folder, outcomes: pa.Table, labels: Sequence[str]) -> pa.Table:
    """The description of every edit, from the work lists, or from the metadata if they lack it."""
    schema = _description_schema(labels)
    tables = [schema.empty_table(), *_of_work_lists(folder, schema)]
    ids = pa.concat_tables(tables)["edit_id"].combine_chunks()
    unknown = outcomes.filter(pc.is_null(pc.index_in(outcomes["edit_id"], value_set=ids)))
    parts = pc.unique(unknown.filter(pc.not_equal(unknown["part"], ""))["part"]).to_pylist()
    with ThreadPoolExecutor(_THREADS) as pool:
        tables += pool.map(lambda part: _of_part(folder, part, schema), sorted(parts))
    return pa.concat_tables(tables)


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


def _of_work_lists(folder: Folder, schema: pa.Schema) -> Iterator[pa.Table]:
    for files, labels in _plans(folder):
        there = [file for file in files if folder.exists(file)]
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(
                lambda f, n: _of_work_list(folder, f, schema, n), there, repeat(labels)
            )


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

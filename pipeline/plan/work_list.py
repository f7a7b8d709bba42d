"""The work list: the groups that are left, as Parquet files with one row per group.

It is cut into slices before Ray starts; the rows of a slice are one block of the run.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Container, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ManifestError, WorkerDiedError
from pipeline.ledger.id_set import which_are_in
from pipeline.ledger.outcome import ID_TYPE, EditKey, EditOutcome, outcomes_table
from pipeline.manifest.annotations import MASK_SOURCE_TYPE
from pipeline.manifest.rows import Problems
from pipeline.plan.ids import file_stem, parameters_json
from pipeline.plan.resolved_job import PlannedGroup, Repeats, ResolvedJob
from pipeline.redact import redact_url
from pipeline.storage.folder import Folder

WORK_FILE_GROUPS = 4096
WORK_FILE_BYTES = 64 << 20
_ROW_GROUP_BYTES = 8 << 20


def work_schema(carried: pa.Schema, *, has_masks: bool = False) -> pa.Schema:
    """The schema of the work list; it has a column `masks` if the job has masks."""
    edit = pa.struct(
        [
            pa.field("edit_id", ID_TYPE, nullable=False),
            pa.field("target_prompt", pa.string(), nullable=False),
            pa.field("labels", pa.list_(pa.string()), nullable=False),
            pa.field("edit_type", pa.string(), nullable=False),
        ]
    )
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("group_id", ID_TYPE, nullable=False),
        pa.field("source_id", ID_TYPE, nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("image_bytes", pa.binary()),
        pa.field("source_prompt", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("synthetic", pa.bool_(), nullable=False),
        pa.field("stem", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("parameters", pa.string(), nullable=False),
        pa.field("edits", pa.list_(edit), nullable=False),
    ]
    if has_masks:
        fields.append(pa.field("masks", pa.list_(MASK_SOURCE_TYPE), nullable=False))
    if len(carried):
        fields.append(pa.field("carried", pa.struct(list(carried))))
    return pa.schema(fields)


@dataclass(frozen=True)
class PendingBatch:
    """The groups of a batch of the manifest that have edits left, without the edits that are done.

    `edits_total` counts the edits of all groups, including done ones; `carried` has the rows of
    `groups`. `rows_repeated` counts the rows that equal an earlier one in everything.
    """

    groups: list[PlannedGroup]
    carried: pa.Table
    edits_total: int
    rows_repeated: int = 0


class RepeatedRows:
    """Counts rows that equal an earlier row in everything: source, prompts, carried columns.

    `bases`: the base ids that occur more than once; a digest of each of their rows is kept.
    """

    def __init__(self, bases: Container[bytes]) -> None:
        self._bases = bases
        self._seen: set[bytes] = set()

    def count(self, groups: Sequence[PlannedGroup], carried: pa.Table) -> int:
        """How many of the groups are such rows; `carried` has one row for each group."""
        found = 0
        for index, group in enumerate(groups):
            if group.base not in self._bases:
                continue
            source, edits = group.source, [edit for _, edit in group.edits]
            others = carried.slice(index, 1).to_pylist()
            text = repr((group.base, source.split, source.masks, edits, others))
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            found += digest in self._seen
            self._seen.add(digest)
        return found


def pending_batches(
    resolved: ResolvedJob, done: Container[bytes], repeats: Repeats | None = None
) -> Iterator[PendingBatch]:
    """Streams the whole manifest in its order, a bounded number of groups at a time.

    Raises ManifestError if the manifest changed after it was checked.
    """
    problems = Problems()
    repeated = RepeatedRows(frozenset() if repeats is None else repeats.bases)
    for groups, carried in resolved.groups(problems, repeats):
        if problems.total:
            raise ManifestError("the manifest changed while it was planned:", problems.lines)
        batch = pending_batch(groups, carried, done)
        yield replace(batch, rows_repeated=repeated.count(groups, carried))


def pending_batch(
    groups: list[PlannedGroup], carried: pa.Table, done: Container[bytes]
) -> PendingBatch:
    ids = [identity for group in groups for identity, _ in group.edits]
    is_done = iter(which_are_in(ids, done))
    kept: list[int] = []
    left: list[PlannedGroup] = []
    for index, group in enumerate(groups):
        edits = tuple(edit for edit in group.edits if not next(is_done))
        if edits:
            kept.append(index)
            left.append(group if len(edits) == len(group.edits) else replace(group, edits=edits))
    if len(kept) < len(groups):
        carried = carried.take(pa.array(kept, pa.int64()))
    return PendingBatch(left, carried, len(ids))


def work_files(batches: Iterable[PendingBatch], schema: pa.Schema) -> Iterator[bytes]:
    """Yields the work list file by file, as Parquet."""
    waiting: list[pa.Table] = []
    for batch in batches:
        waiting.append(_work_table(batch, schema))
        rows, size = sum(len(t) for t in waiting), sum(t.nbytes for t in waiting)
        if rows >= WORK_FILE_GROUPS or size >= WORK_FILE_BYTES:
            yield _parquet(waiting)
            waiting = []
    if any(len(table) for table in waiting):
        yield _parquet(waiting)


def _parquet(tables: list[pa.Table]) -> bytes:
    table = pa.concat_tables(tables)
    row_bytes = max(1, table.nbytes // max(1, len(table)))
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=max(1, min(1024, _ROW_GROUP_BYTES // row_bytes)),
    )
    return sink.getvalue()


def work_table(
    groups: list[PlannedGroup], carried: pa.Table, done: Container[bytes], schema: pa.Schema
) -> pa.Table:
    """The rows of the work list for some groups, without the edits that are done."""
    return _work_table(pending_batch(groups, carried, done), schema)


def _work_table(batch: PendingBatch, schema: pa.Schema) -> pa.Table:
    """Built by column: rows as mappings take three times as long, and there are millions."""
    groups, sources = batch.groups, [group.source for group in batch.groups]
    columns: dict[str, list[Any] | pa.Array] = {
        "row": [source.row for source in sources],
        "group_id": [group.group_id for group in groups],
        "source_id": [group.source_id for group in groups],
        "uri": [source.uri for source in sources],
        "image_bytes": [source.image_bytes for source in sources],
        "source_prompt": [source.source_prompt for source in sources],
        "seed": [source.seed or 0 for source in sources],
        "synthetic": [source.is_synthetic for source in sources],
        "stem": [file_stem(s.id, s.path, s.source_prompt) for s in sources],
        "split": [source.split for source in sources],
        "id": [source.id for source in sources],
        "parameters": [parameters_json(source.parameters) for source in sources],
        "masks": [[{"uri": m.uri, "bytes": m.data} for m in source.masks] for source in sources],
        "edits": _edits_column(groups, schema.field("edits").type),
    }
    if "carried" in schema.names:
        struct = batch.carried.to_struct_array()
        columns["carried"] = struct.combine_chunks().cast(schema.field("carried").type)
    arrays = []
    for item in schema:
        values = columns[item.name]
        arrays.append(values if isinstance(values, pa.Array) else pa.array(values, item.type))
    return pa.table(arrays, schema=schema)


def _edits_column(groups: list[PlannedGroup], kind: pa.DataType) -> pa.Array:
    edits = [edit for group in groups for edit in group.edits]
    ends = itertools.accumulate((len(group.edits) for group in groups), initial=0)
    children = {
        "edit_id": [identity for identity, _ in edits],
        "target_prompt": [edit.target_prompt for _, edit in edits],
        "labels": [edit.labels for _, edit in edits],
        "edit_type": [edit.edit_type for _, edit in edits],
    }
    items = list(kind.value_type)
    struct = pa.StructArray.from_arrays(
        [pa.array(children[item.name], item.type) for item in items], fields=items
    )
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), struct, type=kind)


@dataclass(frozen=True)
class WorkSlice:
    """Some consecutive rows of one work file."""

    path: str
    first: int
    rows: int


def cut_work(
    folder: Folder, work_files: Sequence[str], groups_per_block: int, edits_per_block: int
) -> list[WorkSlice]:
    """Cuts the work list into slices, each as large as both limits allow.

    A slice has at least one row: a group with more edits than `edits_per_block` is a slice of its
    own, because the edits of a group share its inversion. No slice spans two files.
    """
    slices: list[WorkSlice] = []
    for path in work_files:
        first = rows = edits = 0
        for of_group in _edit_counts(folder, path):
            if rows == groups_per_block or (rows and edits + of_group > edits_per_block):
                slices.append(WorkSlice(path, first, rows))
                first, rows, edits = first + rows, 0, 0
            rows, edits = rows + 1, edits + of_group
        if rows:
            slices.append(WorkSlice(path, first, rows))
    return slices


def _edit_counts(folder: Folder, path: str) -> list[int]:
    """How many edits each row of a work file has, from the smallest column that shows it."""
    with folder.open_read(path) as source:
        edits = pq.ParquetFile(source).read(columns=["edits.list.element.edit_type"])["edits"]
    return cast(list[int], pc.list_value_length(edits).to_pylist())


def lost_slices(
    folder: Folder, slices: Sequence[WorkSlice], groups_done: AbstractSet[bytes]
) -> list[WorkSlice]:
    """The slices that have a group that is not in `groups_done`."""
    lost: list[WorkSlice] = []
    for path, of_file in itertools.groupby(slices, key=lambda part: part.path):
        with folder.open_read(path) as source:
            groups = pq.ParquetFile(source).read(columns=["group_id"])["group_id"].to_pylist()
        is_done = which_are_in(groups, groups_done)
        lost.extend(
            part for part in of_file if not all(is_done[part.first : part.first + part.rows])
        )
    return lost


def read_slice(folder: Folder, part: WorkSlice) -> pa.Table:
    """The rows of a slice; reads only the row groups that hold them."""
    with folder.open_read(part.path) as source:
        file = pq.ParquetFile(source)
        wanted: list[int] = []
        first_wanted = first = 0
        for index in range(file.num_row_groups):
            after = first + file.metadata.row_group(index).num_rows
            if after > part.first and first < part.first + part.rows:
                first_wanted = first_wanted if wanted else first
                wanted.append(index)
            first = after
        return file.read_row_groups(wanted).slice(part.first - first_wanted, part.rows)


def quarantined(folder: Folder, part: WorkSlice) -> pa.Table:
    """The outcomes of a slice whose workers died every time: failed as worker_died."""
    return outcomes_table(_quarantine(read_slice(folder, part)))


def _quarantine(table: pa.Table) -> Iterator[EditOutcome]:
    columns = ["row", "group_id", "source_id", "uri", "edits"]
    for row in table.select(columns).to_pylist():
        for edit in row["edits"]:
            key = EditKey(
                edit_id=edit["edit_id"],
                group_id=row["group_id"],
                source_id=row["source_id"],
                row=row["row"],
                target_prompt=edit["target_prompt"],
            )
            yield key.failed(
                WorkerDiedError.code,
                f"{redact_url(row['uri']) or 'this source'} killed its worker every time; the "
                "workers' logs are in Ray's session folder",
            )

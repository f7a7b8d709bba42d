"""The work list: the groups that are left, as Parquet files with one row per group.

It is cut into slices before Ray starts; the rows of a slice are one block of the run. Images that
lie in the manifest stay there: a row says that it has some (`embedded`), and its reader gets them
(`embedded_images`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Container, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import ManifestError, WorkerDiedError
from pipeline.in_order import in_order
from pipeline.ledger.id_set import which_are_in
from pipeline.ledger.outcome import ID_TYPE, EditKey, EditOutcome, outcomes_table
from pipeline.manifest.annotations import MASK_SOURCE_TYPE, MaskSource
from pipeline.manifest.arrow_types import holds_bytes
from pipeline.manifest.edit_inputs import BLEND_WORDS, EDIT_BOXES, EDIT_MASK, InputColumns
from pipeline.manifest.embedded import have_bytes
from pipeline.manifest.region_columns import REGION_PROMPTS
from pipeline.manifest.rows import Problems, SourceRow
from pipeline.plan.ids import file_stem, parameters_json
from pipeline.plan.resolved_job import PlannedGroup, Repeats, ResolvedJob
from pipeline.redact import redact_url
from pipeline.storage.folder import Folder

WORK_FILE_GROUPS = 4096
WORK_FILE_BYTES = 64 << 20
_ROW_GROUP_BYTES = 8 << 20
_THREADS = 16


def work_schema(
    carried: pa.Schema, *, has_masks: bool = False, inputs: InputColumns | None = None
) -> pa.Schema:
    """The schema of the work list; it has a column `masks` if the job has masks.

    `inputs`: what the editor uses of a row. If that is a mask, it is the last of `masks`, and the
    column `edit_mask` says which rows have one. One that is drawn from boxes is not there yet: the
    boxes, (left, top, right, bottom) in pixels of the upright original, are in `edit_boxes`.

    In the files all bytes are null, those of `image_bytes`, `masks` and `carried`. `embedded`:
    whether row `row` of the manifest has some.
    """
    inputs = inputs or InputColumns()
    words = [pa.field(BLEND_WORDS, pa.list_(pa.string()))] if inputs.has_blend_words else []
    if inputs.has_region_prompts:
        words.append(pa.field(REGION_PROMPTS, pa.list_(pa.string())))
    edit = pa.struct(
        [
            pa.field("edit_id", ID_TYPE, nullable=False),
            pa.field("target_prompt", pa.string(), nullable=False),
            pa.field("labels", pa.list_(pa.string()), nullable=False),
            pa.field("edit_type", pa.string(), nullable=False),
            *words,
        ]
    )
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("group_id", ID_TYPE, nullable=False),
        pa.field("source_id", ID_TYPE, nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("image_bytes", pa.binary()),
        pa.field("embedded", pa.bool_()),
        pa.field("source_prompt", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("synthetic", pa.bool_(), nullable=False),
        pa.field("stem", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("parameters", pa.string(), nullable=False),
        pa.field("edits", pa.list_(edit), nullable=False),
    ]
    if inputs.has_masks:
        fields.append(pa.field(EDIT_MASK, pa.bool_(), nullable=False))
    if inputs.boxes is not None:
        fields.append(pa.field(EDIT_BOXES, pa.list_(pa.list_(pa.float64())), nullable=False))
    if has_masks or inputs.has_masks:
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
            masks = (source.masks, source.edit_mask)
            text = repr((group.base, source.split, masks, edits, others))
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
        waiting.append(_work_table(batch, schema, has_images=False))
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
    """The rows of the work list for some groups, without the edits that are done; with images."""
    return _work_table(pending_batch(groups, carried, done), schema, has_images=True)


def _work_table(batch: PendingBatch, schema: pa.Schema, *, has_images: bool) -> pa.Table:
    """Built by column: rows as mappings take three times as long, and there are millions.

    `has_images`: whether the images that lie in the manifest are in the table, or stay there.
    """
    groups, sources = batch.groups, [group.source for group in batch.groups]
    struct = batch.carried.to_struct_array().combine_chunks() if batch.carried.num_columns else None
    embedded = np.zeros(len(groups), bool)
    if not has_images:
        for place, source in enumerate(sources):
            embedded[place] = source.image_bytes is not None or any(
                map(_has_data, all_masks(source))
            )
        if struct is not None:
            struct, in_carried = _without_bytes(struct)
            embedded |= in_carried
    columns: dict[str, list[Any] | pa.Array] = {
        "row": [source.row for source in sources],
        "group_id": [group.group_id for group in groups],
        "source_id": [group.source_id for group in groups],
        "uri": [source.uri for source in sources],
        "image_bytes": [source.image_bytes if has_images else None for source in sources],
        "embedded": pa.array(embedded),
        "source_prompt": [source.source_prompt for source in sources],
        "seed": [source.seed or 0 for source in sources],
        "synthetic": [source.is_synthetic for source in sources],
        "stem": [file_stem(s.id, s.path, s.source_prompt) for s in sources],
        "split": [source.split for source in sources],
        "id": [source.id for source in sources],
        "parameters": [parameters_json(source.parameters) for source in sources],
        EDIT_MASK: [source.edit_mask is not None for source in sources],
        EDIT_BOXES: [_boxes_of(source) for source in sources],
        "masks": [
            [
                {"uri": mask.uri, "bytes": mask.data if has_images else None}
                for mask in all_masks(source)
            ]
            for source in sources
        ],
        "edits": _edits_column(groups, schema.field("edits").type),
    }
    if "carried" in schema.names and struct is not None:
        columns["carried"] = struct.cast(schema.field("carried").type)
    arrays = []
    for item in schema:
        values = columns[item.name]
        arrays.append(values if isinstance(values, pa.Array) else pa.array(values, item.type))
    return pa.table(arrays, schema=schema)


def all_masks(source: SourceRow) -> tuple[MaskSource, ...]:
    """All masks of a row, the edit's the last, unless it is drawn from boxes."""
    own = None if source.edit_mask is None else source.edit_mask.source
    return source.masks if own is None else (*source.masks, own)


def _boxes_of(source: SourceRow) -> list[list[float]]:
    boxes = () if source.edit_mask is None else source.edit_mask.boxes
    return [each.write("xyxy") for each in boxes]


def _has_data(mask: MaskSource) -> bool:
    return mask.data is not None


def _without_bytes(carried: pa.StructArray) -> tuple[pa.StructArray, NDArray[np.bool_]]:
    """The carried columns with null for every value that holds bytes; which rows have such ones."""
    rows = np.zeros(len(carried), bool)
    children = carried.flatten()
    for place, child in enumerate(children):
        if holds_bytes(child.type) and (found := have_bytes(child)).any():
            rows |= found
            children[place] = child.take(pa.array(np.arange(len(child)), mask=found))
    return pa.StructArray.from_arrays(children, fields=list(carried.type)), rows


def _edits_column(groups: list[PlannedGroup], kind: pa.DataType) -> pa.Array:
    edits = [edit for group in groups for edit in group.edits]
    ends = itertools.accumulate((len(group.edits) for group in groups), initial=0)
    children = {
        "edit_id": [identity for identity, _ in edits],
        "target_prompt": [edit.target_prompt for _, edit in edits],
        "labels": [edit.labels for _, edit in edits],
        "edit_type": [edit.edit_type for _, edit in edits],
        BLEND_WORDS: [edit.blend_words for _, edit in edits],
        REGION_PROMPTS: [edit.region_prompts for _, edit in edits],
    }
    items = list(kind.value_type)
    struct = pa.StructArray.from_arrays(
        [pa.array(children[item.name], item.type) for item in items], fields=items
    )
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), struct, type=kind)


@dataclass(frozen=True)
class WorkSlice:
    """Some consecutive rows of one work file.

    `embedded`: the first and the last row of the manifest from which its reader gets images; None
    if none of its rows has images there.
    """

    path: str
    first: int
    rows: int
    embedded: tuple[int, int] | None = None


def cut_work(
    folder: Folder, work_files: Sequence[str], groups_per_block: int, edits_per_block: int
) -> list[WorkSlice]:
    """Cuts the work list into slices, each as large as both limits allow.

    A slice has at least one row: a group with more edits than `edits_per_block` is a slice of its
    own, because the edits of a group share its inversion. No slice spans two files.
    """
    slices: list[WorkSlice] = []
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="work-list") as pool:
        shapes = in_order(pool, partial(_shapes, folder), work_files, 2 * _THREADS)
        for path, (counts, rows_there) in zip(work_files, shapes, strict=True):
            ends = _ends(counts, groups_per_block, edits_per_block)
            for first, end in itertools.pairwise([0, *ends]):
                inside = rows_there[first:end]
                inside = inside[inside >= 0]
                embedded = (int(inside[0]), int(inside[-1])) if len(inside) else None
                slices.append(WorkSlice(path, first, end - first, embedded))
    return slices


def _ends(counts: Sequence[int], groups_per_block: int, edits_per_block: int) -> Iterator[int]:
    """Where the slices of a work file end, of whose rows these are the edits."""
    first = edits = 0
    for row, of_group in enumerate(counts):
        if row > first and (row - first == groups_per_block or edits + of_group > edits_per_block):
            yield row
            first, edits = row, 0
        edits += of_group
    if len(counts) > first:
        yield len(counts)


def _shapes(folder: Folder, path: str) -> tuple[list[int], NDArray[np.int64]]:
    """How many edits each row of a work file has, from the smallest column that shows it, and its
    number in the manifest if it has images there, else -1."""
    with folder.open_read(path) as source:
        table = pq.ParquetFile(source).read(
            columns=["edits.list.element.edit_type", "row", "embedded"]
        )
    embedded = pc.fill_null(table["embedded"], False)
    rows = pc.if_else(embedded, table["row"], -1).to_numpy()
    return cast(list[int], pc.list_value_length(table["edits"]).to_pylist()), rows


def rows_with_images(folder: Folder, part: WorkSlice) -> list[int]:
    """The rows of the manifest that have images there, of a slice."""
    rows = _shapes(folder, part.path)[1][part.first : part.first + part.rows]
    return [row for row in rows.tolist() if row >= 0]


def lost_slices(
    folder: Folder, slices: Sequence[WorkSlice], groups_done: AbstractSet[bytes]
) -> list[WorkSlice]:
    """The slices that have a group that is not in `groups_done`."""
    by_file = {p: list(parts) for p, parts in itertools.groupby(slices, lambda part: part.path)}
    lost: list[WorkSlice] = []
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="work-list") as pool:
        ids = in_order(pool, partial(_group_ids, folder), by_file, 2 * _THREADS)
        for of_file, groups in zip(by_file.values(), ids, strict=True):
            is_done = which_are_in(groups, groups_done)
            lost.extend(
                part for part in of_file if not all(is_done[part.first : part.first + part.rows])
            )
    return lost


def _group_ids(folder: Folder, path: str) -> list[bytes]:
    with folder.open_read(path) as source:
        table = pq.ParquetFile(source).read(columns=["group_id"])
    return cast(list[bytes], table["group_id"].to_pylist())


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

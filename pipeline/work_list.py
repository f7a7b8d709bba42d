"""The work list: what is left to do, as Parquet files with one row per group and a fixed schema."""

from __future__ import annotations

import io
from collections.abc import Container, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ManifestError
from pipeline.ids import file_stem, parameters_json
from pipeline.intent import Intent, PlannedGroup
from pipeline.manifest_row import Problems, WantedEdit
from pipeline.mask_column import MASK_SOURCE_TYPE
from pipeline.outcome import ID_TYPE

WORK_FILE_GROUPS = 4096
WORK_FILE_BYTES = 64 << 20
_ROW_GROUP_BYTES = 8 << 20


def work_schema(carried: pa.Schema, *, has_masks: bool = False) -> pa.Schema:
    """The fixed schema of the work list; a column `masks` where the job has masks."""
    edit = pa.struct(
        [
            pa.field("edit_id", ID_TYPE, nullable=False),
            pa.field("target_prompt", pa.string(), nullable=False),
            pa.field("labels", pa.list_(pa.string()), nullable=False),
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


def work_files(intent: Intent, done: Container[bytes]) -> Iterator[bytes]:
    """The groups with edits that are not in `done`, file by file, as Parquet. Streams.

    Raises ManifestError for a manifest that is no longer what it was when it was checked.
    """
    problems = Problems()
    schema = work_schema(intent.carried_schema, has_masks=intent.has_masks)
    waiting: list[pa.Table] = []
    for groups, carried in intent.groups(problems):
        if problems.total:
            raise ManifestError("the manifest changed while it was planned:", problems.lines)
        waiting.append(work_table(groups, carried, done, schema))
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
    """The rows of the work list for some groups, less the edits that are done."""
    rows: list[dict[str, Any]] = []
    kept: list[int] = []
    for index, group in enumerate(groups):
        edits = [(identity, edit) for identity, edit in group.edits if identity not in done]
        if edits:
            kept.append(index)
            rows.append(_work_row(group, edits))
    columns = [
        pa.array([row[f.name] for row in rows], f.type) for f in schema if f.name != "carried"
    ]
    if "carried" in schema.names:
        struct = carried.take(pa.array(kept, pa.int64())).to_struct_array()
        columns.append(struct.combine_chunks().cast(schema.field("carried").type))
    return pa.table(columns, schema=schema)


def _work_row(group: PlannedGroup, edits: list[tuple[bytes, WantedEdit]]) -> dict[str, Any]:
    source = group.source
    return {
        "row": source.row,
        "group_id": group.group_id,
        "source_id": group.source_id,
        "uri": source.uri,
        "image_bytes": source.image_bytes,
        "source_prompt": source.source_prompt,
        "seed": source.seed or 0,
        "synthetic": source.is_synthetic,
        "stem": file_stem(source.id, source.path, source.source_prompt),
        "split": source.split,
        "id": source.id,
        "parameters": parameters_json(source.parameters),
        "masks": [{"uri": mask.uri, "bytes": mask.data} for mask in source.masks],
        "edits": [
            {"edit_id": identity, "target_prompt": edit.target_prompt, "labels": list(edit.labels)}
            for identity, edit in edits
        ],
    }

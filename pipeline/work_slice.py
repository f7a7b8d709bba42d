"""The work list in slices: which of its rows make a block, settled before Ray starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import WorkerDiedError
from pipeline.id_set import which_are_in
from pipeline.outcome import EditKey, EditOutcome, outcomes_table
from pipeline.redact import redact_url
from pipeline.storage import Folder


@dataclass(frozen=True)
class WorkSlice:
    """Some consecutive rows of one work file."""

    path: str
    first: int
    rows: int


def cut_work(folder: Folder, work_files: Sequence[str], groups_per_block: int) -> list[WorkSlice]:
    """The whole work list in slices of `groups_per_block` rows; only a file's last is shorter."""
    slices: list[WorkSlice] = []
    for path in work_files:
        with folder.open_read(path) as source:
            total = pq.ParquetFile(source).metadata.num_rows
        slices.extend(
            WorkSlice(path, first, min(groups_per_block, total - first))
            for first in range(0, total, groups_per_block)
        )
    return slices


def lost_slices(
    folder: Folder, slices: Sequence[WorkSlice], groups_back: AbstractSet[bytes]
) -> list[WorkSlice]:
    """Those of the slices that have a group which did not come back."""
    lost: list[WorkSlice] = []
    for path, of_file in itertools.groupby(slices, key=lambda part: part.path):
        with folder.open_read(path) as source:
            groups = pq.ParquetFile(source).read(columns=["group_id"])["group_id"].to_pylist()
        is_back = which_are_in(groups, groups_back)
        lost.extend(
            part for part in of_file if not all(is_back[part.first : part.first + part.rows])
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
    """Outcomes of a slice that killed its worker again and again: failed as worker_died."""
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

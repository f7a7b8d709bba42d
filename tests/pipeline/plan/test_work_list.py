"""Slices of the work list: every row in exactly one, whatever the row groups are."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ledger.outcome import OUTCOME_SCHEMA
from pipeline.plan.work_list import WorkSlice, cut_work, lost_slices, quarantined, read_slice
from pipeline.storage.folder import Folder
from tests.builders.work_rows import work_row, work_table

FILES = ["a/work-00000.parquet", "a/work-00001.parquet"]


@pytest.fixture(params=[1, 3, 100])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Folder:
    """Two work files of 10 and 4 rows, in row groups of 1, 3 or as many as there are."""
    folder = Folder.open(str(tmp_path))
    for name, numbers in zip(FILES, (range(10), range(10, 14)), strict=True):
        sink = io.BytesIO()
        rows = [work_row(n, uri=f"/{n}.png", targets=("a", "b")) for n in numbers]
        pq.write_table(work_table(rows), sink, row_group_size=request.param)
        folder.write_new(name, sink.getvalue())
    return folder


@pytest.mark.parametrize("size", [1, 2, 4, 7, 50])
def test_every_row_is_in_one_slice(folder: Folder, size: int) -> None:
    slices = cut_work(folder, FILES, size, 1000)
    assert all(part.rows <= size for part in slices)
    tables = [read_slice(folder, part) for part in slices]
    assert [len(table) for table in tables] == [part.rows for part in slices]
    assert pa.concat_tables(tables)["row"].to_pylist() == list(range(14))


@pytest.mark.parametrize(("edits", "rows"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (1000, 7)])
def test_a_slice_has_no_more_edits_than_it_may(folder: Folder, edits: int, rows: int) -> None:
    """Every row has two edits, so a limit of one edit leaves one row."""
    slices = cut_work(folder, FILES, 7, edits)
    assert max(part.rows for part in slices) == rows
    tables = [read_slice(folder, part) for part in slices]
    assert pa.concat_tables(tables)["row"].to_pylist() == list(range(14))


def test_lost_blocks_are_found_as_they_were_cut(folder: Folder) -> None:
    groups = read_slice(folder, WorkSlice(FILES[0], 0, 10))["group_id"].to_pylist()
    groups += read_slice(folder, WorkSlice(FILES[1], 0, 4))["group_id"].to_pylist()
    back = {group for number, group in enumerate(groups) if number not in (3, 12)}
    slices = cut_work(folder, FILES, 3, 1000)
    lost = lost_slices(folder, slices, back)
    assert lost == [WorkSlice(FILES[0], 3, 3), WorkSlice(FILES[1], 0, 3)]
    assert lost_slices(folder, lost, back | {groups[3]}) == [WorkSlice(FILES[1], 0, 3)]
    assert lost_slices(folder, slices, set(groups)) == []


def test_quarantined_edits_name_their_source(folder: Folder) -> None:
    table = quarantined(folder, WorkSlice(FILES[0], 3, 1))
    assert table.schema.equals(OUTCOME_SCHEMA)
    assert table["target_prompt"].to_pylist() == ["a", "b"]
    assert set(table["reason"].to_pylist()) == {"worker_died"}
    assert all("/3.png" in message for message in table["message"].to_pylist())

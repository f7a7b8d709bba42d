"""Gets the images of work rows from the manifest that they lie in, each byte of it once.

A row group of a manifest can hold the images of many slices, and it has no index: whoever wants the
last image reads the others too. So slices that share a row group are read by one task, one after
the other, which yields a block for each (`runs_of`). A run ends between two row groups, or within
one that is small beside the run: the next run then reads that row group again.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from pipeline.manifest.annotations import MASK_SOURCE_TYPE
from pipeline.manifest.embedded import Cells, Embedded, read_cells
from pipeline.plan.ids import source_id, source_key_of_bytes
from pipeline.plan.work_list import WorkSlice, read_slice, rows_with_images
from pipeline.storage.folder import Folder

PROBLEM_FIELD = pa.field("problem", pa.string(), nullable=False)
"""The column of blocks with images of the manifest: why those of a row cannot be had, or ""."""
_READ_TWICE_PART = 8
"""A run may end within a row group that has no more than this part of the run's bytes."""

Run: TypeAlias = tuple[WorkSlice, ...]


def runs_of(slices: Sequence[WorkSlice], embedded: Embedded | None) -> list[Run]:
    """Slices that one task reads, in their order; a slice without images is a run of its own."""
    if embedded is None:
        return [(part,) for part in slices]
    groups = _RowGroups(embedded)
    runs: list[list[WorkSlice]] = []
    run_bytes, last = 0, -1
    for part in slices:
        if part.embedded is None:
            runs.append([part])
            run_bytes, last = 0, -1
            continue
        first, end = map(groups.place_of, part.embedded)
        again = groups.bytes[first]
        if first != last or again * _READ_TWICE_PART <= run_bytes:
            runs.append([])
            run_bytes, last = 0, first - 1
        runs[-1].append(part)
        run_bytes += sum(groups.bytes[max(first, last + 1) : end + 1])
        last = end
    return [tuple(run) for run in runs]


class _RowGroups:
    """All row groups of the files with images, in their order."""

    def __init__(self, embedded: Embedded) -> None:
        self.bytes = [size for each in embedded.files for _, size in each.file.row_groups]
        self._firsts = [row for each in embedded.files for row in each.first_rows()[:-1]]

    def place_of(self, row: int) -> int:
        return bisect.bisect_right(self._firsts, row) - 1


def read_run(folder: Folder, run: Run, embedded: Embedded | None) -> Iterator[pa.Table]:
    """The rows of each slice, with their images. Raises StorageError for the work list alone."""
    if embedded is None or run[0].embedded is None:
        yield from (read_slice(folder, part) for part in run)
        return
    rows = itertools.chain.from_iterable(rows_with_images(folder, part) for part in run)
    cells = read_cells(embedded, rows)
    for part in run:
        yield with_images(read_slice(folder, part), embedded, cells)


def embedded_of(run: Run, embedded: Embedded | None) -> Embedded | None:
    """What a run needs of it, so that every task does not get all files."""
    ends = [part.embedded for part in run if part.embedded is not None]
    return embedded.of_rows(ends[0][0], ends[-1][1]) if embedded is not None and ends else None


def with_images(table: pa.Table, embedded: Embedded, cells: Iterator[Cells]) -> pa.Table:
    """Work rows with the images that the manifest has; takes as many of the cells as it needs.

    An image has to be the one that was planned, by the hash in its row's source id. Where it is
    not, and where the manifest cannot be read, the row has no image, and a problem.
    """
    rows = table.drop_columns(["edits", *({"carried"} & set(table.column_names))]).to_pylist()
    found = {n: _checked(row, next(cells)) for n, row in enumerate(rows) if row["embedded"]}

    def replaced(name: str, values: Iterable[Any], kind: pa.DataType) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, table.schema.field(place), pa.array(list(values), kind))

    images = (found[n].image if n in found else row["image_bytes"] for n, row in enumerate(rows))
    table = replaced("image_bytes", images, pa.binary())
    if "masks" in table.column_names:
        masks = (found[n].masks if n in found else row["masks"] for n, row in enumerate(rows))
        table = replaced("masks", masks, pa.list_(MASK_SOURCE_TYPE))
    if "carried" in table.column_names:
        place = table.column_names.index("carried")
        carried = _with_carried(table["carried"].combine_chunks(), embedded, found)
        table = table.set_column(place, table.schema.field(place), carried)
    problems = [found[n].problem if n in found else "" for n in range(len(rows))]
    return table.append_column(PROBLEM_FIELD, pa.array(problems, pa.string()))


def _checked(row: Mapping[str, Any], cells: Cells) -> Cells:
    if cells.problem or row["uri"] or row["synthetic"]:
        return cells
    if cells.image is not None:
        key = source_key_of_bytes(row["id"], cells.image)
        if source_id(key, b"") == row["source_id"]:
            return cells
    return Cells(
        problem=f"row {row['row']} of the manifest: it has another image now than when the work "
        "was planned: run the same command again"
    )


def _with_carried(
    carried: pa.StructArray, embedded: Embedded, found: Mapping[int, Cells]
) -> pa.StructArray:
    children = carried.flatten()
    for number, place in enumerate(embedded.carried):
        child = children[place]
        values = [
            found[row].carried[number].cast(child.type)
            if row in found and not found[row].problem
            else child.slice(row, 1)
            for row in range(len(child))
        ]
        children[place] = pa.concat_arrays(values) if values else child
    return pa.StructArray.from_arrays(children, fields=list(carried.type), mask=carried.is_null())

"""Images that lie in the manifest itself: where they are, and how those of some rows are read.

The work list does not copy them. It has the numbers of the manifest's rows, and whoever decodes a
row reads its image, its masks and its carried images from the manifest, as planning did: through
the file's layout, in the types of its columns. A file that is not the one that was planned is not
read (`EmbeddedFile.version`).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import ManifestError, StorageError
from pipeline.in_order import in_order
from pipeline.manifest.annotations import MaskColumn
from pipeline.manifest.arrow_types import holds_bytes, is_bytes, is_list, plain_type
from pipeline.manifest.carried import carried_column
from pipeline.manifest.columns import ImageCell, known_values
from pipeline.manifest.files import ROWS_PER_BATCH_OF_BYTES, Manifest, ManifestFile
from pipeline.manifest.parquet_files import OpenedParquet
from pipeline.redact import redact_url
from pipeline.storage.folder import Folder, folder_and_name

_IMAGE = "image"
_THREADS = 16
_NOT_THERE = (-1, "")
"""The size and version of a file that does not exist."""


@dataclass(frozen=True)
class EmbeddedFile:
    """A file with images in it; `size` and `version` are those of `Folder.versions`."""

    file: ManifestFile
    size: int
    version: str

    def first_rows(self) -> list[int]:
        """The number in the manifest of the first row of each row group, and of the row after the
        last one."""
        physical = list(itertools.accumulate((rows for rows, _ in self.file.row_groups), initial=0))
        return [self.file.first_row + live for live in _live(self.file, physical)]


@dataclass(frozen=True)
class Embedded:
    """The files of a manifest that have images in them, and the columns that these are in.

    `carried_schema`: the manifest's. Picklable.
    """

    files: tuple[EmbeddedFile, ...]
    carried_schema: pa.Schema
    masks: MaskColumn | None
    options: dict[str, Any]
    edit_mask: MaskColumn | None = None

    @property
    def carried(self) -> list[int]:
        """The places of the carried columns that may hold bytes."""
        return [n for n, item in enumerate(self.carried_schema) if holds_bytes(item.type)]

    def place_of(self, row: int) -> int:
        """The place in `files` of the file that has a row of the manifest."""
        return bisect.bisect_right(self.files, row, key=lambda each: each.file.first_row) - 1

    def of_rows(self, first: int, last: int) -> Embedded:
        """The same with no more files than hold the rows from `first` to `last`."""
        return replace(self, files=self.files[self.place_of(first) : self.place_of(last) + 1])


@dataclass(frozen=True)
class Cells:
    """What one row has in the manifest, or why it cannot be read (`problem`).

    `masks` are the values of MASK_SOURCE_TYPE, the edit's mask the last of them; `carried` those of
    the columns `Embedded.carried`, each an array of one value.
    """

    image: bytes | None = None
    masks: list[dict[str, Any]] = field(default_factory=list)
    carried: tuple[pa.Array, ...] = ()
    problem: str = ""


def embedded_in(
    manifest: Manifest, masks: MaskColumn | None, edit_mask: MaskColumn | None = None
) -> Embedded | None:
    """The files of a manifest that may have images in them; None if it has none.

    Raises StorageError.
    """
    embedded = Embedded((), manifest.carried_schema, masks, dict(manifest.options), edit_mask)
    files = [file for file in manifest.files if any(_kinds_with_bytes(embedded, file))]
    if not files:
        return None

    def planned(file: ManifestFile) -> EmbeddedFile:
        return EmbeddedFile(file, *_version_of(file, embedded.options))

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="versions") as pool:
        return replace(embedded, files=tuple(in_order(pool, planned, files, 2 * _THREADS)))


def read_cells(embedded: Embedded, rows: Iterable[int]) -> Iterator[Cells]:
    """What the rows of these numbers, which ascend, have in the manifest.

    Reads the columns with images alone, and of these the row groups with such rows, each once. A
    file that is gone, damaged, or another one than was planned is a problem of each of its rows.
    """
    for place, of_file in itertools.groupby(rows, key=embedded.place_of):
        each, numbers, done = embedded.files[place], list(of_file), 0
        problem = "ends before this row"
        try:
            for cells in _read(embedded, each, numbers):
                yield cells
                done += 1
        except (ManifestError, StorageError) as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - Arrow's for damaged bytes, or a client's
            problem = f"cannot be read: {error}"
        shown = redact_url(each.file.url)
        problem = problem if shown in problem else f"{shown} {problem}"
        for number in numbers[done:]:
            yield Cells(problem=f"row {number} of the manifest: {problem}")


def _read(embedded: Embedded, each: EmbeddedFile, rows: Sequence[int]) -> Iterator[Cells]:
    file = each.file
    found = _version_of(file, embedded.options)
    if found == _NOT_THERE:
        raise ManifestError(
            f"{redact_url(file.url)} is not there for this worker: a manifest with images in it "
            "has to stay until the run is over, where all workers can read it"
        )
    if found != (each.size, each.version):
        raise ManifestError(
            f"{redact_url(file.url)} was written again since the work was planned: run the same "
            "command again when it is complete"
        )
    firsts = each.first_rows()
    groups = sorted({bisect.bisect_right(firsts, row) - 1 for row in rows})
    names = [name for name in _columns(embedded) if name in file.schema.names]
    layout, columns = file.layout, names
    if layout is not None:
        kept = pa.schema([layout.schema.field(name) for name in names])
        columns = sorted({layout.sources[name] for name in names if name in layout.sources})
        layout = replace(layout, schema=kept, stated={})
    waiting = iter(rows)
    row = next(waiting)
    opened = OpenedParquet.open(file.url, embedded.options)
    try:
        for first, batch in opened.batches(ROWS_PER_BATCH_OF_BYTES, groups, columns or None):
            table = pa.Table.from_batches([batch])
            if layout is not None:
                table = layout.rows_of(batch, first)
            (live,) = _live(file, [first])
            start, values = file.first_row + live, None
            while row < start + len(table):
                values = values or _Values(embedded, file, table)
                yield values.at(row - start)
                after = next(waiting, None)
                if after is None:
                    return
                row = after
    finally:
        opened.close()


class _Values:
    """The values of some rows of a file, read as `Manifest.batches` reads them."""

    def __init__(self, embedded: Embedded, file: ManifestFile, table: pa.Table) -> None:
        rows, self._base = len(table), file.base
        self._images = _known(_IMAGE, table, file.schema) or [None] * rows
        self._masks = [
            (column, _known(column.column, table, file.schema) or [None] * rows)
            for column in (embedded.masks, embedded.edit_mask)
            if column is not None
        ]
        self._carried: list[pa.ChunkedArray] = []
        for place in embedded.carried:
            item = embedded.carried_schema.field(place)
            if item.name in table.column_names:
                values = carried_column(
                    item.name, table[item.name], file.schema, embedded.carried_schema, file.base
                )
            else:
                values = pa.chunked_array([pa.nulls(rows, item.type)])
            self._carried.append(values)

    def at(self, index: int) -> Cells:
        masks = [
            mask for column, cells in self._masks for mask in column.masks(cells[index], self._base)
        ]
        return Cells(
            ImageCell.of(self._images[index]).data,
            [{"uri": mask.uri, "bytes": mask.data} for mask in masks],
            tuple(values.slice(index, 1).combine_chunks() for values in self._carried),
        )


def _known(name: str, table: pa.Table, schema: pa.Schema) -> list[Any] | None:
    return known_values(name, table[name], schema) if name in table.column_names else None


def _columns(embedded: Embedded) -> list[str]:
    masks = (embedded.masks, embedded.edit_mask)
    names = [each.column for each in masks if each is not None]
    carried = (embedded.carried_schema.field(place).name for place in embedded.carried)
    return list(dict.fromkeys([_IMAGE, *names, *carried]))


def _kinds_with_bytes(embedded: Embedded, file: ManifestFile) -> Iterator[bool]:
    for name in _columns(embedded):
        if name in file.schema.names:
            yield holds_bytes(plain_type(file.schema.field(name).type))


def _version_of(file: ManifestFile, options: dict[str, Any]) -> tuple[int, str]:
    base, name = folder_and_name(file.url)
    return Folder.open(base or "/", options).versions(name).get(name, _NOT_THERE)


def _live(file: ManifestFile, physical: Sequence[int]) -> list[int]:
    """How many live rows a file has before each of these rows."""
    dead = None if file.layout is None else file.layout.dead_rows
    if dead is None:
        return list(physical)
    return [row - int(np.searchsorted(dead, row)) for row in physical]


def have_bytes(values: pa.Array) -> NDArray[np.bool_]:
    """For each value, whether it holds bytes, at any depth; an empty one does too."""
    found = np.zeros(len(values), bool)
    if is_bytes(values.type):
        return np.asarray(values.is_valid())
    if pa.types.is_struct(values.type):
        for child in values.flatten():
            found |= have_bytes(child)
    elif is_list(values.type):
        parents = pc.list_parent_indices(values).to_numpy()
        found[parents[have_bytes(values.flatten())]] = True
    return found

"""Reads the Parquet files of a manifest: footers side by side, rows in a few large requests.

On a store a pass over a file costs its size in bytes, and a request for every 4 MB of it or less
(`storage.spans`), whatever its row groups and columns are. Small files are opened ahead of their
turn, so that a manifest of many of them does not wait for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ManifestError, StorageError
from pipeline.in_order import in_order
from pipeline.manifest.arrow_types import meant_schema
from pipeline.storage.folder import Folder, folder_and_name, is_local_path
from pipeline.storage.spans import SpanFile

_READ_BUFFER_BYTES = 1 << 20
_FOOTER_THREADS = 16
_FILES_AHEAD = 8
_File = TypeVar("_File")


@dataclass(frozen=True)
class Footer:
    """What the manifest keeps of a file's footer.

    `row_groups`: of each the number of rows, and the bytes of all its columns, not compressed.
    """

    rows: int
    schema: pa.Schema
    row_groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class OpenedParquet:
    """A Parquet file that is open for reading; to be closed."""

    url: str
    reader: pq.ParquetFile
    source: Any
    stack: ExitStack

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any]) -> Self:
        """Raises ManifestError for what is not a Parquet file, and StorageError."""
        base, name = folder_and_name(url)
        with ExitStack() as stack:
            source = stack.enter_context(Folder.open(base or "/", options).open_spans(name))
            try:
                # Without a buffer Arrow reads a whole column of a row group at once, images too.
                reader = pq.ParquetFile(source, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False)
            except StorageError:
                raise
            except Exception as error:  # Arrow may raise anything for damaged bytes
                raise _not_parquet(url, error) from error
            return cls(url, reader, source, stack.pop_all())

    def footer(self) -> Footer:
        """Raises ManifestError."""
        try:
            schema = meant_schema(self.reader)
            _read_names(schema)
        except Exception as error:  # Arrow may raise anything for damaged bytes
            raise _not_parquet(self.url, error) from error
        metadata = self.reader.metadata
        groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
        # The columns' sizes in the file would be better, but in a damaged footer a look at a column
        # can end the process (seen in pyarrow 26.0.1).
        sizes = tuple((group.num_rows, max(0, group.total_byte_size)) for group in groups)
        return Footer(metadata.num_rows, schema, sizes)

    def batches(
        self,
        rows: int,
        row_groups: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows, at most `rows` at a time, each time with the number of the first in the file.

        `row_groups`, `columns`: no others than these; the numbers of the row groups ascend. To be
        called once. Keeps a few rows and one Parquet page per column in memory; the writer chose
        the page size. Raises what Arrow raises for damaged bytes, and StorageError.
        """
        metadata = self.reader.metadata
        groups = list(range(metadata.num_row_groups)) if row_groups is None else list(row_groups)
        if isinstance(self.source, SpanFile):
            wanted = None if columns is None else set(columns)
            ranges = [
                _range_of(chunk)
                for group, leaf in itertools.product(groups, range(metadata.num_columns))
                if (chunk := metadata.row_group(group).column(leaf))
                and (wanted is None or chunk.path_in_schema.split(".")[0] in wanted)
            ]
            self.source.announce(ranges, len(ranges) // max(1, len(groups)))
        sizes = (metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        firsts = list(itertools.accumulate(sizes, initial=0))
        for stretch in _stretches(groups):
            first = firsts[stretch[0]]
            for batch in self.reader.iter_batches(
                rows, row_groups=stretch, columns=columns, use_threads=False
            ):
                yield first, batch
                first += batch.num_rows

    def close(self) -> None:
        self.reader.close()
        self.stack.close()


def read_footers(urls: Sequence[str], options: Mapping[str, Any]) -> list[Footer]:
    """The footers of files, in their order; equal schemas are one object.

    Raises ManifestError and StorageError.
    """
    schemas: dict[bytes, pa.Schema] = {}

    def read(url: str) -> Footer:
        opened = OpenedParquet.open(url, options)
        try:
            return opened.footer()
        finally:
            opened.close()

    def shared(footer: Footer) -> Footer:
        schema = schemas.setdefault(footer.schema.serialize().to_pybytes(), footer.schema)
        return Footer(footer.rows, schema, footer.row_groups)

    if len(urls) == 1:
        return [read(urls[0])]
    with ThreadPoolExecutor(_FOOTER_THREADS, thread_name_prefix="footers") as pool:
        return [shared(footer) for footer in in_order(pool, read, urls, 2 * _FOOTER_THREADS)]


def opened_in_turn(
    files: Iterable[_File], url_of: Callable[[_File], str], options: Mapping[str, Any]
) -> Iterator[tuple[_File, OpenedParquet]]:
    """Opens files one after the other, those of stores ahead of their turn, and closes each.

    Raises ManifestError and StorageError.
    """

    def open_file(file: _File) -> tuple[_File, OpenedParquet]:
        return file, OpenedParquet.open(url_of(file), options)

    def opened() -> Iterator[tuple[_File, OpenedParquet]]:
        waiting = list(files)
        if len(waiting) < 2 or all(is_local_path(url_of(file)) for file in waiting):
            yield from map(open_file, waiting)
            return
        with ThreadPoolExecutor(_FILES_AHEAD, thread_name_prefix="manifest") as pool:
            yield from in_order(pool, open_file, waiting, _FILES_AHEAD)

    for file, parquet in opened():
        try:
            yield file, parquet
        finally:
            parquet.close()


def _stretches(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers, cut where one is left out."""
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and stretches[-1][-1] == number - 1:
            stretches[-1].append(number)
        else:
            stretches.append([number])
    return stretches


def _range_of(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    first = chunk.data_page_offset
    if chunk.dictionary_page_offset is not None and chunk.dictionary_page_offset > 0:
        first = min(first, chunk.dictionary_page_offset)
    return first, first + chunk.total_compressed_size


def _not_parquet(url: str, error: Exception) -> ManifestError:
    return ManifestError(f"{url} is not a Parquet file, or is cut short: {error}")


def _read_names(fields: Iterable[pa.Field]) -> None:
    """Reads all names, at any depth. Raises UnicodeDecodeError for one that is not UTF-8."""
    for item in fields:
        _ = item.name
        _read_names(item.type.field(index) for index in range(item.type.num_fields))

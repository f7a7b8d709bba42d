"""Joins tables by the edit's id with bounded memory: their rows lie on disk, ordered by first bits.

    with RowsById(schema) as committed, RowsById(other) as described:
        ...                                   # committed.add(table), described.add(table)
        for ours, theirs in zip(committed.buckets(), described.buckets(), strict=True):
            ids, (our_number, their_number) = numbered(ours, theirs)

Ids are hashes, so buckets have similar sizes, and equal ids are in the same one. The buckets come
in the order of ids.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.ledger.id_set import ID_BYTES, IdList, ids_with_places, packed_ids

BUCKETS = 256
_WAITING_ROWS = 1 << 16
_WAITING_BYTES = 32 << 20


class RowsById:
    """Rows of tables with a column `edit_id` (binary(16)), in a temporary file.

    A context manager, which removes the file. Some 65,000 rows are in memory, and then one bucket:
    a 256th of the rows.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._waiting: list[pa.Table] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._batches = [array("I") for _ in range(BUCKETS)]
        self._written = 0
        self._folder = tempfile.TemporaryDirectory(prefix="fpe-rows-")
        self._file = str(Path(self._folder.name) / "rows.arrow")
        self._writer = pa.ipc.new_file(self._file, schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._writer.close()
        self._folder.cleanup()

    def add(self, table: pa.Table) -> None:
        """Adds rows; of equal ids, those that were added first come first."""
        table = table.select(self.schema.names).cast(self.schema)
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        self._waiting_bytes += table.nbytes
        if self._waiting_rows >= _WAITING_ROWS or self._waiting_bytes >= _WAITING_BYTES:
            self._spill()

    def buckets(self) -> Iterator[pa.Table]:
        """The rows of every bucket. No more can be added."""
        self._spill()
        self._writer.close()
        empty = self.schema.empty_table()
        with pa.OSFile(self._file) as file, pa.ipc.open_file(file) as reader:
            for numbers in self._batches:
                batches = [reader.get_batch(number) for number in numbers]
                yield pa.Table.from_batches(batches).combine_chunks() if batches else empty

    def _spill(self) -> None:
        """Writes the waiting rows, bucket by bucket."""
        if not self._waiting_rows:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
        bucket = np.frombuffer(packed_ids(table), np.uint8)[::ID_BYTES]
        order = np.argsort(bucket, kind="stable")
        there, firsts = np.unique(bucket[order], return_index=True)
        for number, rows in zip(there.tolist(), np.split(order, firsts[1:]), strict=True):
            for batch in table.take(pa.array(rows)).combine_chunks().to_batches():
                self._writer.write_batch(batch)
                self._batches[number].append(self._written)
                self._written += 1


def numbered(*tables: pa.Table) -> tuple[IdList, list[npt.NDArray[np.int64]]]:
    """The different ids of some tables, sorted, and for each table the places of its rows' ids."""
    packed = [packed_ids(table) for table in tables]
    ids, places = ids_with_places(b"".join(packed))
    ends = np.cumsum([len(each) // ID_BYTES for each in packed])
    return ids, np.split(places, ends[:-1])


def is_again(places: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows of one table that repeat the id of an earlier one: (rows, the rows before them)."""
    order = np.argsort(places, kind="stable")
    repeats = np.flatnonzero(places[order][1:] == places[order][:-1])
    return order[repeats + 1], order[repeats]

"""How the rows of one Parquet file become rows of the manifest: columns that are not in the file,
other names and types than in the file, and rows that are deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ManifestError
from pipeline.manifest.partitions import Texts, value_of
from pipeline.manifest.table_formats import LiveFile

_FIELD_ID = b"PARQUET:field_id"


@dataclass(frozen=True)
class FileLayout:
    """The columns of the manifest that a file gives, and where each comes from.

    Attributes:
        schema: the columns as the manifest has them.
        sources: for each column that is in the file, its name there.
        constants: the value of each column that is not; null if it is in neither.
        stated: values that columns of the file must have, since the file's folders state them.
        dead_rows: sorted numbers of the file's rows that are deleted, from 0.
    """

    schema: pa.Schema
    sources: Mapping[str, str]
    constants: Mapping[str, pa.Scalar] = field(default_factory=dict)
    stated: Mapping[str, pa.Scalar] = field(default_factory=dict)
    dead_rows: np.ndarray[Any, np.dtype[np.int64]] | None = None

    @classmethod
    def of_partitions(
        cls, texts: Texts, types: Mapping[str, pa.DataType], physical: pa.Schema
    ) -> FileLayout:
        """The layout of a file in folders `key=value`. Raises ManifestError.

        `types`: the types of partition columns; a column of the file keeps its own type.
        """
        constants, stated, schema = {}, {}, physical
        for name, text in texts.items():
            if name not in physical.names:
                constants[name] = value_of(text, types[name])
                schema = schema.append(pa.field(name, types[name]))
                continue
            kind = physical.field(physical.names.index(name)).type
            try:
                stated[name] = value_of(text, _plain(kind))
            except pa.ArrowException as error:
                raise ManifestError(
                    f"column {name} is {kind}, and the folder {name}={text} is not: leave out the "
                    "column, or rename the folder"
                ) from error
        return cls(schema, {name: name for name in physical.names}, constants, stated)

    @classmethod
    def of_table(cls, live: LiveFile, physical: pa.Schema) -> FileLayout:
        """The layout of a table's file. Raises ManifestError if a column's type does not show which
        of its fields are which."""
        sources = {}
        for name in live.schema.names:
            names = [name, *live.old_names.get(name, ())]
            if source := next((each for each in names if each in physical.names), None):
                sources[name] = source
        if live.ids is not None and (ids := _top_ids(physical)):
            _refuse_renamed_inside(live.ids, physical)
            sources = {
                name: ids[number] for number, name in _top_ids(live.ids).items() if number in ids
            }
        return cls(live.schema, sources, live.constants, dead_rows=live.dead_rows)

    @property
    def dead(self) -> int:
        """How many rows are deleted."""
        return 0 if self.dead_rows is None else len(self.dead_rows)

    def rows_of(self, batch: pa.RecordBatch, first: int) -> pa.Table:
        """The live rows of a batch, whose first row is number `first` of the file.

        Raises ManifestError for a value that contradicts the file's folders, and ArrowException for
        one that does not have the column's type in the table.
        """
        table = pa.Table.from_batches([batch])
        if self.dead_rows is not None:
            is_live = np.ones(len(table), bool)
            start, stop = np.searchsorted(self.dead_rows, [first, first + len(table)])
            is_live[self.dead_rows[start:stop] - first] = False
            table = table.filter(pa.array(is_live))
        for name, value in self.stated.items():
            self._check(table, name, value, first)
        columns = []
        for item in self.schema:
            source = self.sources.get(item.name)
            if source is not None:
                column = table[source]
                is_same = column.type.equals(item.type)
                columns.append(column if is_same else column.cast(item.type))
            else:
                value = self.constants.get(item.name, pa.scalar(None, item.type))
                columns.append(pa.chunked_array([pa.repeat(value, len(table))]))
        return pa.table(columns, schema=self.schema)

    def _check(self, table: pa.Table, name: str, value: pa.Scalar, first: int) -> None:
        column = table[name].cast(value.type)
        is_equal = pc.equal(column, value) if value.is_valid else pc.is_null(column)
        wrong = pc.index(pc.fill_null(is_equal, False), False).as_py()
        if wrong >= 0:
            raise ManifestError(
                f"row {first + wrong}: column {name} is {column[wrong].as_py()!r}, and the file's "
                f"folder says {name}={value.as_py()}: leave out the column, or rename the folder"
            )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _top_ids(schema: pa.Schema) -> dict[int, str]:
    """The name of every column that has a Parquet field id."""
    return {
        int(item.metadata[_FIELD_ID]): item.name
        for item in schema
        if item.metadata and _FIELD_ID in item.metadata
    }


def _refuse_renamed_inside(table: pa.Schema, file: pa.Schema) -> None:
    """Raises ManifestError if fields inside of a column were renamed or replaced in the table.

    Arrow finds such fields by name, so that they would be read as null, or as each other.
    """
    here, there = dict(_inner_ids(table)), dict(_inner_ids(file))
    paths = {number: path for path, number in there.items()}
    for path, number in here.items():
        if there.get(path, number) != number or paths.get(number, path) != path:
            raise ManifestError(
                f"the field {path[1]} inside of a column was renamed or replaced after this file "
                "was written, which is not read: rewrite the table's data files (compact it)"
            )


def _inner_ids(schema: pa.Schema) -> Iterator[tuple[tuple[int, str], int]]:
    """For all fields of structs inside of columns: (column's id, path in it), and its own id."""
    for item in schema:
        if item.metadata and _FIELD_ID in item.metadata:
            top = int(item.metadata[_FIELD_ID])
            yield from (((top, path), number) for path, number in _walk(item.type, ""))


def _walk(kind: pa.DataType, above: str) -> Iterator[tuple[str, int]]:
    for index in range(kind.num_fields):
        item = kind.field(index)
        if pa.types.is_struct(kind):
            path = f"{above}.{item.name}"
            if item.metadata and _FIELD_ID in item.metadata:
                yield path, int(item.metadata[_FIELD_ID])
        else:  # the names of list elements, keys and values differ between writers
            path = f"{above}[{index}]"
        yield from _walk(item.type, path)

"""The manifest's column of boxes: found, checked, read; and what the output says of each box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from fpe_core.boxes import Box
from fpe_core.errors import ParameterError
from pipeline.errors import JobError

_EXPECTED = (
    "one box (a list of four numbers) or a list of boxes; of structs name the field, such as "
    "objects.bbox"
)


@dataclass(frozen=True)
class BoxColumn:
    """Where the boxes are. `path` is a column and the fields below it.

    `is_list`: a row has a list of boxes; else one.
    """

    path: tuple[str, ...]
    box_format: str
    is_list: bool

    @classmethod
    def find(cls, schema: pa.Schema, column: str, box_format: str) -> Self:
        """Raises JobError where there is no such column, or one without boxes."""
        path = (column,) if column in schema.names else tuple(column.split("."))
        if path[0] not in schema.names:
            raise JobError(
                f"annotations.boxes.column: the manifest has no column {path[0]!r}; there are "
                f"{', '.join(schema.names) or 'none that could be'}"
            )
        kind, lists = _plain_list(schema.field(path[0]).type)
        for name in path[1:]:
            if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
                raise JobError(
                    f"annotations.boxes.column: {column!r} is not in the manifest: no field "
                    f"{name!r} in {kind}"
                )
            kind, more = _plain_list(kind.field(name).type)
            lists += more
        if not _is_number(kind) or lists not in (1, 2):
            found = schema.field(path[0]).type
            raise JobError(
                f"annotations.boxes.column: {column!r} must be {_EXPECTED}; it is {found}"
            )
        return cls(path, box_format, is_list=lists == 2)

    @property
    def name(self) -> str:
        """What its output columns are called after."""
        return "_".join(self.path)

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The output's columns: box in the edited picture, verdict, structure, visible share."""

        def of_each(kind: pa.DataType) -> pa.DataType:
            return pa.list_(kind) if self.is_list else kind

        return (
            pa.field(f"edited_{self.name}", of_each(pa.list_(pa.float64()))),
            pa.field(f"{self.name}_verdict", of_each(pa.string())),
            pa.field(f"{self.name}_structure", of_each(pa.float64())),
            pa.field(f"{self.name}_visible", of_each(pa.float64())),
        )

    def cells(self, table: pa.Table) -> list[Any]:
        """The column's cells, row by row: None, a box, or a list of boxes; unchecked."""
        values: list[Any] = table[self.path[0]].to_pylist()
        for name in self.path[1:]:
            values = [_field_of(value, name) for value in values]
        return values

    def boxes(self, cell: Any) -> tuple[Box, ...] | None:
        """The boxes of a cell; None for null.

        Raises ParameterError for what is no box; the message says which of the list.
        """
        if cell is None:
            return None
        boxes = []
        for number, values in enumerate(cell if self.is_list else [cell]):
            try:
                if values is None:
                    raise ParameterError("a box has four numbers, this one is null")
                boxes.append(Box.read(values, self.box_format))
            except ParameterError as error:
                where = f" (number {number} of its list)" if self.is_list else ""
                raise ParameterError(f"{'.'.join(self.path)}: {error}{where}") from error
        return tuple(boxes)

    def columns(self, per_box: Sequence[tuple[Any, ...]] | None) -> dict[str, Any]:
        """Values by output column of one row, from those of each box in the order of `fields`."""
        names = [item.name for item in self.fields]
        if per_box is None:
            return dict.fromkeys(names)
        if not self.is_list:
            return dict(zip(names, per_box[0], strict=True))
        by_column = zip(*per_box, strict=True) if per_box else ([] for _ in names)
        return {name: list(values) for name, values in zip(names, by_column, strict=True)}


def _plain_list(kind: pa.DataType) -> tuple[pa.DataType, int]:
    """What is inside lists, and how many there are around it."""
    lists = 0
    types = pa.types
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, lists = kind.value_type, lists + 1
    return kind, lists


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind))


def _field_of(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_field_of(each, name) for each in value]
    return None if value is None else value[name]

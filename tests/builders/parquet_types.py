"""Arrow types and Parquet's logical types, with values of each, for manifests of every kind."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

UTC = dt.UTC
_MOMENT = dt.datetime(2024, 5, 1, 2, 3, 4, 5)  # noqa: DTZ001 - a timestamp without a zone
_STRING_MARK = b"\x25\x00\x4c\x1c\x00\x00"
"""Thrift of a Parquet schema element of text: converted type UTF8, logical type STRING (fields 6
and 10 of SchemaElement in parquet-format's parquet.thrift)."""
MARKS = {"ENUM": b"\x25\x08\x4c\x4c\x00\x00", "JSON": b"\x25\x26\x4c\xcc\x00\x00"}


class Kind(NamedTuple):
    """A type, two values of it, and the type and values in which they are carried."""

    type: pa.DataType
    values: list[Any]
    becomes: pa.DataType
    carried: list[Any]


def _same(kind: pa.DataType, *values: Any) -> Kind:
    return Kind(kind, list(values), kind, list(values))


_UUIDS = [bytes(range(16)), b"\xff" * 16]
_UUID_TEXTS = ["00010203-0405-0607-0809-0a0b0c0d0e0f", "ffffffff-ffff-ffff-ffff-ffffffffffff"]
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())
KINDS = {
    "bool": _same(pa.bool_(), True, False),
    "int8": _same(pa.int8(), 1, -2),
    "int64": _same(pa.int64(), 1, -(2**63)),
    "uint8": _same(pa.uint8(), 1, 255),
    "uint64": _same(pa.uint64(), 1, 2**63 - 1),
    "large_uint64": Kind(
        pa.uint64(), [5, 2**64 - 1], pa.decimal128(20, 0), [Decimal(5), Decimal(2**64 - 1)]
    ),
    "half": _same(pa.float16(), 0.5, 1.5),
    "float": _same(pa.float32(), 0.5, 3.0),
    "double": _same(pa.float64(), 0.1, 3.0),
    "decimal": _same(pa.decimal128(5, 2), Decimal("1.50"), Decimal("-2.00")),
    "decimal256": _same(pa.decimal256(50, 2), Decimal("1.50"), Decimal("2.00")),
    "decimal32": Kind(
        pa.decimal32(3, 1), [Decimal("1.5")] * 2, pa.decimal128(3, 1), [Decimal("1.5")] * 2
    ),
    "decimal64": Kind(
        pa.decimal64(9, 1), [Decimal("1.5")] * 2, pa.decimal128(9, 1), [Decimal("1.5")] * 2
    ),
    "date32": _same(pa.date32(), _MOMENT.date(), dt.date(1, 1, 1)),
    "time32": _same(pa.time32("ms"), dt.time(1, 2, 3), dt.time(0, 0)),
    "time64": _same(pa.time64("us"), dt.time(1, 2, 3, 4), dt.time(0, 0)),
    "time64_ns": Kind(
        pa.time64("ns"), [dt.time(1, 2, 3, 4)] * 2, pa.time64("us"), [dt.time(1, 2, 3, 4)] * 2
    ),
    "timestamp": _same(pa.timestamp("us"), _MOMENT, dt.datetime(9999, 1, 1)),  # noqa: DTZ001
    "timestamp_ns": _same(pa.timestamp("ns"), _MOMENT, _MOMENT),
    "timestamp_tz": _same(pa.timestamp("us", "UTC"), *[_MOMENT.replace(tzinfo=UTC)] * 2),
    "duration": _same(pa.duration("us"), dt.timedelta(1, 2, 3), dt.timedelta(0)),
    "string": _same(pa.string(), "a", "b"),
    "large_string": _same(pa.large_string(), "a", "b"),
    "string_view": Kind(pa.string_view(), ["a", "b" * 40], pa.string(), ["a", "b" * 40]),
    "dictionary": Kind(_DICTIONARY, ["a", "b"], pa.string(), ["a", "b"]),
    "binary": _same(pa.binary(), b"a", b"\xff"),
    "large_binary": _same(pa.large_binary(), b"a", b"\xff"),
    "binary_view": Kind(pa.binary_view(), [b"a", b"\xff"], pa.binary(), [b"a", b"\xff"]),
    "fixed_size_binary": Kind(pa.binary(3), [b"abc", b"\xff23"], pa.binary(), [b"abc", b"\xff23"]),
    "uuid": Kind(pa.uuid(), _UUIDS, pa.string(), _UUID_TEXTS),
    "json": Kind(pa.json_(pa.string()), ["[1]", '{"a": 1}'], pa.string(), ["[1]", '{"a": 1}']),
    "bool8": Kind(pa.bool8(), [1, 0], pa.bool_(), [True, False]),
    "list": _same(pa.list_(pa.int64()), [1], [2, None]),
    "large_list": _same(pa.large_list(pa.int64()), [1], [2, None]),
    "fixed_size_list": _same(pa.list_(pa.int64(), 2), [1, 4], [2, None]),
    "list_view": Kind(
        pa.list_view(pa.int64()), [[1], [2, None]], pa.list_(pa.int64()), [[1], [2, None]]
    ),
    "large_list_view": Kind(
        pa.large_list_view(pa.int64()), [[1], []], pa.large_list(pa.int64()), [[1], []]
    ),
    "list_of_views": Kind(
        pa.list_view(pa.string_view()), [["a"], [None]], pa.list_(pa.string()), [["a"], [None]]
    ),
    "tensor": Kind(
        pa.fixed_shape_tensor(pa.float32(), [2, 2]),
        [[1.0, 2.0, 3.0, 4.0]] * 2,
        pa.list_(pa.float32(), 4),
        [[1.0, 2.0, 3.0, 4.0]] * 2,
    ),
}
"""Types that are carried, by their names."""


def array_of(kind: pa.DataType, values: list[Any]) -> pa.Array:
    """Like pa.array, which cannot make extension types from Python values (pyarrow 26)."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, array_of(kind.storage_type, values))
    if pa.types.is_struct(kind):
        columns = [
            array_of(f.type, [None if v is None else v[f.name] for v in values]) for f in kind
        ]
        mask = pa.array([value is None for value in values])
        return pa.StructArray.from_arrays(columns, fields=list(kind), mask=mask)
    if pa.types.is_list(kind):
        flat = [each for value in values for each in value or ()]
        ends = [0]
        for value in values:
            ends.append(ends[-1] + len(value or ()))
        mask = pa.array([value is None for value in values])
        items = array_of(kind.value_type, flat)
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), items, mask=mask)
    return pa.array(values, kind)


def at_every_depth(kind: Kind) -> Iterator[tuple[str, Kind]]:
    """The type alone and inside others, with four rows of values, nulls among them."""
    (a, b), (x, y) = kind.values, kind.carried

    def inside(wrap: Any, rows: Any) -> Kind:
        return Kind(wrap(kind.type), rows(a, b), wrap(kind.becomes), rows(x, y))

    def struct(each: pa.DataType) -> pa.DataType:
        return pa.struct([("a", each)])

    yield "alone", inside(lambda each: each, lambda a, b: [a, None, b, a])
    yield "in_list", inside(pa.list_, lambda a, b: [[a, b], None, [], [None, b]])
    yield "in_struct", inside(struct, lambda a, b: [{"a": a}, None, {"a": None}, {"a": b}])
    yield (
        "in_list_of_structs",
        inside(
            lambda each: pa.list_(struct(each)),
            lambda a, b: [[{"a": a}], None, [], [{"a": None}, {"a": b}]],
        ),
    )
    yield (
        "in_struct_of_lists",
        inside(
            lambda each: struct(pa.list_(each)),
            lambda a, b: [{"a": [a]}, None, {"a": None}, {"a": [None, b]}],
        ),
    )


def mark_column(path: Path, column: str, mark: str) -> None:
    """Makes a column of text one of Parquet's logical type ENUM or JSON.

    pyarrow cannot write ENUM. The file must have been written with store_schema=False.
    """
    content, name = path.read_bytes(), bytes([len(column)]) + column.encode()
    assert content.count(name + _STRING_MARK) == 1
    path.write_bytes(content.replace(name + _STRING_MARK, name + MARKS[mark]))
    found = pq.ParquetFile(path).schema
    leaf = next(i for i in range(len(found)) if found.column(i).path.split(".")[0] == column)
    assert found.column(leaf).logical_type.type == mark

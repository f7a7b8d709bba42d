"""Arrow types: what the columns of a Parquet file mean, and the plain types in which they are read.

The same values come in many types: text as string, large_string, string_view, a dictionary or
Parquet's ENUM; lists as views; UUIDs as 16 bytes. `meant_schema` reads what a file says about its
columns, `plain_type` gives the type in which the pipeline reads and carries them, and `converted`
brings values there. All other modules know plain types only.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_UUID, _BOOL8, _JSON = "arrow.uuid", "arrow.bool8", "arrow.json"
_INTERVAL = pa.month_day_nano_interval()
_LARGE_UNSIGNED = pa.decimal128(20, 0)
"""For whole numbers from 2^63 on, which `datasets` cannot hold as numbers."""
_LEAST_LARGE = 2**63
_LISTS = {
    "list": pa.list_,
    "list_view": pa.list_,
    "large_list": pa.large_list,
    "large_list_view": pa.large_list,
}
_UUID_BYTES = 16


def meant_schema(file: pq.ParquetFile) -> pa.Schema:
    """The file's Arrow schema, with the meanings that only its Parquet schema tells.

    ENUM is text (pyarrow reads bytes). JSON and UUID are Arrow's extension types, even if this
    pyarrow would read text and bytes. INTERVAL is Arrow's month_day_nano_interval (pyarrow reads
    bytes). Unsigned numbers of 64 bits are decimals, unless the statistics say that all are below
    2^63.
    """
    schema, leaves = file.schema_arrow, iter(range(len(file.schema)))
    try:
        fields = [item.with_type(_meant(item.type, file, leaves)) for item in schema]
    except StopIteration:  # a type whose leaves are not those of the Parquet schema
        return schema
    return schema if next(leaves, None) is not None else pa.schema(fields, schema.metadata)


def _meant(kind: pa.DataType, file: pq.ParquetFile, leaves: Iterator[int]) -> pa.DataType:
    """The meaning of a type; takes its columns from `leaves`, those of the Parquet schema."""
    types = pa.types
    if types.is_dictionary(kind):
        value = _meant(kind.value_type, file, leaves)
        return kind if value.equals(kind.value_type) else value
    if isinstance(kind, pa.BaseExtensionType):
        _meant(kind.storage_type, file, leaves)
        return kind
    if types.is_struct(kind):
        return pa.struct([item.with_type(_meant(item.type, file, leaves)) for item in kind])
    if types.is_map(kind):
        key = _meant(kind.key_type, file, leaves)
        return pa.map_(key, _meant(kind.item_type, file, leaves))
    if is_list(kind):
        item = kind.value_field
        value = item.with_type(_meant(item.type, file, leaves))
        return kind if value.type.equals(item.type) else _list_of(kind, value)
    return _meant_leaf(kind, file, next(leaves))


def _meant_leaf(kind: pa.DataType, file: pq.ParquetFile, leaf: int) -> pa.DataType:
    meaning = file.schema.column(leaf).logical_type.type
    if meaning == "ENUM" and pa.types.is_binary(kind):
        return pa.string()
    if meaning == "JSON":
        return pa.json_(pa.string())
    if meaning == "UUID":
        return pa.uuid()
    if meaning == "INTERVAL" or file.schema.column(leaf).converted_type == "INTERVAL":
        return _INTERVAL
    if pa.types.is_uint64(kind) and _may_be_large(file, leaf):
        return _LARGE_UNSIGNED
    return kind


def _may_be_large(file: pq.ParquetFile, leaf: int) -> bool:
    """Whether a column of unsigned numbers may hold one from 2^63 on."""
    for group in range(file.metadata.num_row_groups):
        column = file.metadata.row_group(group).column(leaf)
        found = column.statistics
        if found is not None and found.has_min_max:
            if found.max >= _LEAST_LARGE:
                return True
        elif not (found is not None and found.null_count == column.num_values):
            return True
    return False


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type in which values are read and carried, at every depth.

    Without dictionaries, views, extension types and fixed lengths of bytes: `datasets`, pandas,
    DuckDB and older releases of pyarrow each cannot read some of them. UUIDs and intervals (as ISO
    8601 writes durations) are text, JSON is its text, times have microseconds.
    """
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        known = {_UUID: pa.string(), _BOOL8: pa.bool_()}
        return known.get(kind.extension_name) or plain_type(kind.storage_type)
    if types.is_struct(kind):
        return pa.struct([pa.field(item.name, plain_type(item.type)) for item in kind])
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if is_list(kind):
        return _list_of(kind, plain_type(kind.value_type))
    return _plain_leaf(kind)


def _plain_leaf(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_string_view(kind) or kind.equals(_INTERVAL):
        return pa.string()
    if types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_decimal(kind) and kind.bit_width < pa.decimal128(1).bit_width:
        return pa.decimal128(kind.precision, kind.scale)
    return pa.time64("us") if kind.equals(pa.time64("ns")) else kind


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists, of any kind. Maps are not."""
    return str(kind).partition("<")[0] in _LISTS or bool(pa.types.is_fixed_size_list(kind))


def is_json(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == _JSON


def is_uuid(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == _UUID


def is_text(kind: pa.DataType) -> bool:
    """Whether a plain type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a plain type is bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _list_of(kind: pa.DataType, value: pa.DataType | pa.Field) -> pa.DataType:
    """A list of these values, of the same kind as `kind` but for views."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(value, kind.list_size)
    return _LISTS[str(kind).partition("<")[0]](value)


def unloadable(kind: pa.DataType, place: str) -> str:
    """What of a plain type `datasets.load_dataset` cannot load, with its place; "" if nothing."""
    types = pa.types
    if types.is_struct(kind):
        names = [item.name for item in kind]
        if len(set(names)) < len(names) or not names:
            return f"{place} is a {kind}"
        parts = (unloadable(item.type, f"{place}.{item.name}") for item in kind)
        return next(filter(None, parts), "")
    if is_list(kind):
        return unloadable(kind.value_type, f"{place}[]")
    is_loadable = (
        is_text(kind)
        or is_bytes(kind)
        or types.is_null(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_date(kind)
        or types.is_time(kind)
        or types.is_timestamp(kind)
        or types.is_duration(kind)
    )
    return "" if is_loadable else f"{place} is a {kind}"


def converted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """The values in another type that can hold them.

    Fields of structs are found by their names, and if these differ, by their places. Raises
    pa.ArrowException if a value does not fit, ValueError for text that should be a UUID.
    """
    if column.type.equals(kind):
        return column
    return pa.chunked_array([_converted(chunk, kind) for chunk in column.chunks], kind)


def _converted(array: pa.Array, kind: pa.DataType) -> pa.Array:
    held, types = array.type, pa.types
    if held.equals(kind):
        return array
    if isinstance(held, pa.BaseExtensionType):
        return _converted(array.storage, kind)
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _converted(array, kind.storage_type))
    if types.is_dictionary(held):
        return _converted(array.dictionary_decode(), kind)
    if types.is_run_end_encoded(held):
        return _converted(pc.run_end_decode(array), kind)
    if array.null_count == len(array):
        return pa.nulls(len(array), kind)
    if types.is_struct(held) and types.is_struct(kind):
        return _converted_struct(array, kind)
    if is_list(held) and is_list(kind):
        return _converted_list(array, kind)
    if types.is_fixed_size_binary(held) and is_text(kind):
        read = _uuid_text if held.byte_width == _UUID_BYTES else _interval_text
        return pa.array([None if x is None else read(x) for x in array.to_pylist()], kind)
    if is_text(held) and types.is_fixed_size_binary(kind):
        values = array.to_pylist()
        return pa.array([None if x is None else uuid.UUID(x).bytes for x in values], kind)
    return array.cast(kind)


def _converted_struct(array: pa.StructArray, kind: pa.DataType) -> pa.Array:
    children, names = array.flatten(), [item.name for item in array.type]
    wanted = list(kind)
    wanted_names = {item.name for item in wanted}
    if wanted_names <= set(names) or set(names) <= wanted_names:
        by_name = dict(zip(names, children, strict=True))
        children = [by_name.get(item.name, pa.nulls(len(array))) for item in wanted]
    columns = [_converted(child, item.type) for child, item in zip(children, wanted, strict=True)]
    return pa.StructArray.from_arrays(columns, fields=wanted, mask=array.is_null())


def _converted_list(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Not with Arrow's cast: that of views fails for what is read from Parquet (pyarrow 26)."""
    if pa.types.is_fixed_size_list(kind):
        if not pa.types.is_fixed_size_list(array.type):
            return array.cast(kind)
        size = kind.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        return pa.FixedSizeListArray.from_arrays(
            _converted(values, kind.value_type), type=kind, mask=array.is_null()
        )
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    is_large = pa.types.is_large_list(kind)
    build = pa.LargeListArray if is_large else pa.ListArray
    offsets = pa.array(ends, pa.int64()).cast(pa.int64() if is_large else pa.int32())
    values = _converted(array.flatten(), kind.value_type)
    return build.from_arrays(offsets, values, type=kind, mask=array.is_null())


def _uuid_text(value: bytes) -> str:
    return str(uuid.UUID(bytes=value))


def _interval_text(value: bytes) -> str:
    """Parquet's INTERVAL as ISO 8601 writes durations: months, days and milliseconds."""
    months, days, milliseconds = struct.unpack("<3I", value)
    seconds, rest = divmod(milliseconds, 1000)
    shown = str(seconds) + f".{rest:03d}".rstrip("0").rstrip(".")
    date = (f"{months}M" if months else "") + (f"{days}D" if days else "")
    return f"P{date}" + (f"T{shown}S" if milliseconds or not date else "")


def can_be_written_as(kind: pa.DataType, before: pa.DataType, *, was_uuid: bool = False) -> bool:
    """Whether values of a type can be written to a column that began with another one.

    That is so if the types differ in how they store values and not in the values: one kind of text
    and another, and what earlier releases wrote for the same column of a manifest (`before`).
    """
    if isinstance(before, pa.BaseExtensionType):
        return can_be_written_as(kind, before.storage_type)
    if kind.equals(before):
        return True
    types = pa.types
    if types.is_struct(kind) and types.is_struct(before):
        return kind.num_fields == before.num_fields and all(
            can_be_written_as(one.type, other.type) for one, other in zip(kind, before, strict=True)
        )
    if is_list(kind) and is_list(before):
        sizes = {x.list_size if types.is_fixed_size_list(x) else None for x in (kind, before)}
        return len(sizes) == 1 and can_be_written_as(kind.value_type, before.value_type)
    if was_uuid and before.equals(pa.binary(_UUID_BYTES)):
        return True
    return _plain_leaf(before).equals(kind) or (_family(kind), _family(before)) in _SAME


def _family(kind: pa.DataType) -> str:
    if is_text(kind):
        return "text"
    if is_bytes(kind):
        return "bytes"
    return str(kind)


_SAME = {
    ("text", "text"),
    ("bytes", "bytes"),
    ("text", "bytes"),  # ENUM, which was carried as bytes
    ("bool", "int8"),  # bool8
    (str(_LARGE_UNSIGNED), "uint64"),
}


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type may hold bytes, at any depth."""
    return is_bytes(kind) or any(
        holds_bytes(kind.field(index).type) for index in range(kind.num_fields)
    )

"""The manifest's column `target_labels`: the labels of each edit, next to its target prompt.

It has one struct per target prompt, with the new value of each label. If a value is null, the label
keeps the value of the row's own column. The edit has that own value as `source_<label>`, as with
the labels of a job's `prompts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import ManifestError

TARGET_LABELS = "target_labels"
EXPECTED = "a struct of text or numbers (label: new value), or lists of it, one for each prompt"


def is_target_labels(kind: pa.DataType) -> bool:
    """Whether cells of this type can be target labels. A map has no fixed labels."""
    fields = _struct_of(kind)
    return fields is not None and all(_is_value(item.type) for item in fields)


def label_fields(schemas: Sequence[pa.Schema]) -> tuple[pa.Field, ...]:
    """The labels of all files, in order of appearance, each with one type. Raises ManifestError."""
    found: dict[str, pa.Field] = {}
    for schema in schemas:
        if TARGET_LABELS not in schema.names:
            continue
        for item in _struct_of(schema.field(TARGET_LABELS).type) or ():
            label = pa.field(item.name, _value_type(item.type))
            if not item.name.isidentifier():
                raise ManifestError(
                    f"{TARGET_LABELS}: label {item.name!r} is not a valid name; use letters, "
                    "digits and _"
                )
            if not found.setdefault(item.name, label).equals(label):
                types = f"{found[item.name].type} and {label.type}"
                raise ManifestError(f"{TARGET_LABELS}: label {item.name} is {types}")
    return tuple(found.values())


def labels_of_row(
    cell: Any, prompts: int, names: Sequence[str], own: Mapping[str, str]
) -> list[tuple[str | None, ...]]:
    """The labels of every edit of a row, as text, in the order of `names`; None for no value.

    `own`: the values of the row's own columns, "" for null. Raises ValueError for a number of
    entries that is not `prompts`, and for entries that are null or empty.
    """
    if not names:
        return [()] * prompts
    entries = cell if isinstance(cell, list) else [cell]
    if len(entries) != prompts:
        raise ValueError(f"{TARGET_LABELS} has {len(entries)} entries for {prompts} target prompts")
    return [_labels(entry, number, names, own) for number, entry in enumerate(entries)]


def _labels(
    entry: Mapping[str, Any] | None, number: int, names: Sequence[str], own: Mapping[str, str]
) -> tuple[str | None, ...]:
    if entry is None:
        raise ValueError(
            f"{TARGET_LABELS} is null for target prompt number {number}; an edit that changes no "
            "label has an entry whose values are null"
        )
    values = []
    for name in names:
        value = entry.get(name)
        text = own.get(name, "") if value is None else str(value)
        if value is not None and not text.strip():
            raise ValueError(
                f"{TARGET_LABELS}.{name} is empty for target prompt number {number}; null keeps "
                "the row's own"
            )
        values.append(text or None)
    return tuple(values)


def label_type(own: pa.DataType | None, new: pa.DataType) -> pa.DataType:
    """The type of an output label: that of the manifest's column if the new values have the same
    type, else text. `own`: None if the manifest has no such column."""
    kind = new if own is None or pa.types.is_null(own) else _value_type(own)
    return kind if kind.equals(new) else pa.string()


def type_of_texts(own: pa.DataType, values: Sequence[str]) -> pa.DataType:
    """The type of a label whose new values are texts of a job file: that of the manifest's column
    if that has whole numbers and the texts are whole numbers too, else text."""
    if not pa.types.is_integer(own):
        return pa.string()
    try:
        numbers = pa.array(values, pa.string()).cast(own)
    except pa.ArrowInvalid:
        return pa.string()
    return own if [str(each) for each in numbers.to_pylist()] == list(values) else pa.string()


def _struct_of(kind: pa.DataType) -> list[pa.Field] | None:
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return list(kind) if types.is_struct(kind) else None


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type in which values are written: whole numbers in their own type, all others as text."""
    return kind if pa.types.is_integer(kind) else pa.string()


def _is_value(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _is_value(kind.value_type)
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )

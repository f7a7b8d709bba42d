"""The manifest's column `target_labels`: the labels of each edit, next to its target prompt.

It has one struct per target prompt, with the new value of each label. If a value is null, the label
keeps the value of the row's own column. The edit has that own value as `source_<label>`, as with
the labels of a job's `prompts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import ManifestError
from pipeline.manifest.arrow_types import is_list, is_text, plain_type
from pipeline.manifest.features import Feature, class_names, features_of, field_of, item_of
from pipeline.manifest.words import Words, words_of

TARGET_LABELS = "target_labels"
EXPECTED = "a struct of text or numbers (label: new value), or lists of it, one for each prompt"


def is_target_labels(kind: pa.DataType) -> bool:
    """Whether cells of a plain type can be target labels. A map has no fixed labels."""
    fields = _struct_of(kind)
    return fields is not None and all(_is_value(item.type) for item in fields)


def label_fields(schemas: Sequence[pa.Schema]) -> tuple[pa.Field, ...]:
    """The labels of all files, in order of appearance, each with one type. Raises ManifestError."""
    found: dict[str, pa.Field] = {}
    for schema in schemas:
        if TARGET_LABELS not in schema.names:
            continue
        for item in _struct_of(plain_type(schema.field(TARGET_LABELS).type)) or ():
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


def label_classes(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The names of the labels of a file that are class labels (`datasets.ClassLabel`), themselves
    or by the column of their name."""
    features = features_of(schema)
    found = features.get(TARGET_LABELS)
    each: Feature = item_of(found) or found
    named = {
        item.name: class_names(field_of(each, item.name)) or class_names(features.get(item.name))
        for item in _fields_of(schema)
        if pa.types.is_integer(plain_type(item.type))
    }
    return {name: classes for name, classes in named.items() if classes}


def common_classes(schemas: Sequence[pa.Schema]) -> dict[str, tuple[str, ...]]:
    """The names of the labels that are class labels in all files. Raises ManifestError if files
    have different names."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for schema in schemas:
        classes = label_classes(schema)
        for item in _fields_of(schema):
            found.setdefault(item.name, set()).add(classes.get(item.name, ()))
    for name, each in found.items():
        if len(each) > 1:
            raise ManifestError(
                f"{TARGET_LABELS}.{name} has other class labels (datasets.ClassLabel) in some files"
            )
    return {name: classes for name, (classes,) in found.items() if classes}


def label_words(schema: pa.Schema) -> dict[str, Words]:
    """How the values of the labels of a file become text."""
    classes = label_classes(schema)
    return {
        item.name: words_of(item.type, classes.get(item.name, ())) for item in _fields_of(schema)
    }


def labels_of_row(
    cell: Any,
    prompts: int,
    names: Sequence[str],
    own: Mapping[str, str],
    words: Mapping[str, Words],
) -> list[tuple[str | None, ...]]:
    """The labels of every edit of a row, as text, in the order of `names`; None for no value.

    `own`: the values of the row's own columns, "" for null. `words`: those of the row's file, see
    `label_words`. Raises ValueError for a number of entries that is not `prompts`, and for entries
    that are null or empty.
    """
    if not names:
        return [()] * prompts
    entries = cell if isinstance(cell, list) else [cell]
    if len(entries) != prompts:
        raise ValueError(f"{TARGET_LABELS} has {len(entries)} entries for {prompts} target prompts")
    return [_labels(entry, number, names, own, words) for number, entry in enumerate(entries)]


def _labels(
    entry: Mapping[str, Any] | None,
    number: int,
    names: Sequence[str],
    own: Mapping[str, str],
    words: Mapping[str, Words],
) -> tuple[str | None, ...]:
    if entry is None:
        raise ValueError(
            f"{TARGET_LABELS} is null for target prompt number {number}; an edit that changes no "
            "label has an entry whose values are null"
        )
    values = []
    for name in names:
        value = _unless_nan(entry.get(name))
        text = own.get(name, "") if value is None else words[name](value)
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


def type_of_texts(
    own: pa.DataType, values: Sequence[str], classes: Sequence[str] = ()
) -> pa.DataType:
    """The type of a label whose new values are texts of a job file: that of the manifest's column
    if that has whole numbers and the texts are whole numbers or names of its `classes`, else
    text."""
    if not pa.types.is_integer(own):
        return pa.string()
    return own if set(values) <= set(classes) or are_numbers(own, values) else pa.string()


def are_numbers(kind: pa.DataType, texts: Sequence[str]) -> bool:
    """Whether all texts are whole numbers of this type, as Arrow writes them."""
    try:
        numbers = pa.array(texts, pa.string()).cast(kind)
    except pa.ArrowInvalid:
        return False
    return [str(each) for each in numbers.to_pylist()] == list(texts)


def _unless_nan(value: Any) -> Any:
    """None for NaN, with which pandas writes missing numbers."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _fields_of(schema: pa.Schema) -> list[pa.Field]:
    """The labels of a file, with their types as `arrow_types.meant_schema` has them."""
    if TARGET_LABELS not in schema.names:
        return []
    return _struct_of(schema.field(TARGET_LABELS).type) or []


def _struct_of(kind: pa.DataType) -> list[pa.Field] | None:
    kind = kind.value_type if is_list(kind) else kind
    return list(kind) if pa.types.is_struct(kind) else None


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type in which values are written: whole numbers in their own type, all others as text."""
    return kind if pa.types.is_integer(kind) else pa.string()


def _is_value(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        is_text(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
    )

"""Hugging Face's features: what `datasets` writes about columns into a file's schema metadata.

Arrow sees a class label as a number and an image as a struct. Their names and kinds are in the key
`huggingface`, as JSON. This module reads class labels and images there, and writes class labels for
the columns of the output, so that `datasets.load_dataset` gives them back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.arrow_types import is_list

Feature: TypeAlias = Any
"""The JSON of a feature: {"_type": ...}, {field: feature} for a struct, or [feature] for a list."""

METADATA_KEY = b"huggingface"
NO_CLASS = -1
"""The number of a label that is not known, as in test sets."""
_LISTS = ("List", "LargeList", "Sequence")
_DTYPES = {
    "float": "float32",
    "double": "float64",
    "halffloat": "float16",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
"""Names that `datasets` gives to types; all other names are Arrow's."""


def features_of(schema: pa.Schema) -> Mapping[str, Feature]:
    """The features of a file's columns; {} if it has none, or none that can be read."""
    return _parsed((schema.metadata or {}).get(METADATA_KEY, b"{}"))


@lru_cache(maxsize=64)
def _parsed(data: bytes) -> Mapping[str, Feature]:
    try:
        features = json.loads(data)["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def metadata_of(features: Mapping[str, Feature]) -> dict[bytes, bytes]:
    """The schema metadata that gives columns these features; {} for none."""
    if not features:
        return {}
    return {METADATA_KEY: json.dumps({"info": {"features": features}}).encode()}


def class_names(feature: Feature) -> tuple[str, ...]:
    """The names of a class label, by number; () if it is something else."""
    names = feature.get("names") if _type_of(feature) == "ClassLabel" else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def class_label(names: tuple[str, ...]) -> Feature:
    return {"names": list(names), "_type": "ClassLabel"}


def is_image(feature: Feature) -> bool:
    return _type_of(feature) == "Image"


def holds_images(feature: Feature) -> bool:
    """Whether a column has an image, or a list of them, in each row."""
    return is_image(feature) or is_image(item_of(feature))


def item_of(feature: Feature) -> Feature:
    """The feature of a list's items; None if it is not a list's."""
    if isinstance(feature, list):
        return feature[0] if len(feature) == 1 else None
    return feature.get("feature") if _type_of(feature) in _LISTS else None


def field_of(feature: Feature, name: str) -> Feature:
    """The feature of a struct's field; None if there is none.

    A Sequence of a struct is stored as a struct of lists.
    """
    if _type_of(feature) == "Sequence":
        found = field_of(feature.get("feature"), name)
        return None if found is None else {"feature": found, "_type": "Sequence"}
    return feature.get(name) if isinstance(feature, dict) and not _type_of(feature) else None


def with_classes(kind: pa.DataType, feature: Feature) -> Feature:
    """The feature that a column of a plain type has in the output: that of its class labels, at any
    depth. None if it has none."""
    if names := class_names(feature):
        return class_label(names) if pa.types.is_int64(kind) else None
    if pa.types.is_struct(kind):
        found = {item.name: with_classes(item.type, field_of(feature, item.name)) for item in kind}
        if not any(found.values()):
            return None
        return {item.name: found[item.name] or _plain_feature(item.type) for item in kind}
    if not is_list(kind) or (item := with_classes(kind.value_type, item_of(feature))) is None:
        return None
    return _list_feature(kind, item)


def _list_feature(kind: pa.DataType, item: Feature) -> Feature:
    """Without the type List, which `datasets` 3 does not know."""
    if pa.types.is_large_list(kind):
        return {"feature": item, "_type": "LargeList"}
    if not pa.types.is_fixed_size_list(kind):
        return [item]
    return {"feature": item, "length": kind.list_size, "_type": "Sequence"}


def _plain_feature(kind: pa.DataType) -> Feature:
    if pa.types.is_struct(kind):
        return {item.name: _plain_feature(item.type) for item in kind}
    if is_list(kind):
        return _list_feature(kind, _plain_feature(kind.value_type))
    return {"dtype": _DTYPES.get(str(kind), str(kind)), "_type": "Value"}


def class_without_name(column: pa.Array | pa.ChunkedArray, feature: Feature) -> int | None:
    """A number in a column that its class labels have no name for; None if there is none."""
    for numbers, names in _class_numbers(column, feature):
        bounds = pc.min_max(numbers).as_py()
        if bounds["min"] is not None and bounds["min"] < NO_CLASS:
            return int(bounds["min"])
        if bounds["max"] is not None and bounds["max"] >= len(names):
            return int(bounds["max"])
    return None


def _class_numbers(
    column: pa.Array | pa.ChunkedArray, feature: Feature
) -> Iterator[tuple[pa.Array | pa.ChunkedArray, tuple[str, ...]]]:
    """The numbers of all class labels in a column, with their names. `feature`: `with_classes`."""
    if names := class_names(feature):
        yield column, names
    elif pa.types.is_struct(column.type):
        for item in column.type:
            yield from _class_numbers(
                pc.struct_field(column, item.name), field_of(feature, item.name)
            )
    elif is_list(column.type):
        yield from _class_numbers(pc.list_flatten(column), item_of(feature))


def _type_of(feature: Feature) -> str:
    kind = feature.get("_type") if isinstance(feature, dict) else None
    return kind if isinstance(kind, str) else ""

"""The carried columns as they are written: names and types with which `datasets` loads a part.

`datasets` opens a text field x_file_name as an image called x, in structs too, so such fields are
written under other names. Images of the manifest that `datasets` knows to be images are written as
files, so that it opens them again: a folder of images cannot have them in its metadata.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from pipeline.manifest.arrow_types import is_list, is_text
from pipeline.manifest.features import Feature, field_of, item_of

IMAGE_ENDINGS = ("file_name", "file_names")
"""`datasets` opens a column x_file_name as images and names it x."""


def new_name(name: str, used: Collection[str], *, is_image_name: bool) -> str:
    """The name of a column or field in the output: its own if it is not used and not opened as an
    image, else manifest_<name>, without the ending file_name."""
    chosen = name
    while chosen in used or is_image_name:
        if is_image_name:
            chosen, is_image_name = chosen.removesuffix("_names").removesuffix("_name"), False
            chosen += "_path"
        chosen = f"manifest_{chosen}"
    return chosen


def written(kind: pa.DataType, feature: Feature) -> tuple[pa.DataType, Feature]:
    """A plain type with new names for the fields of structs that would be opened as images, and a
    feature with the same names."""
    if is_list(kind):
        value, item = written(kind.value_type, item_of(feature))
        if value.equals(kind.value_type):
            return kind, feature
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(value, kind.list_size), _with_item(feature, item)
        build = pa.large_list if pa.types.is_large_list(kind) else pa.list_
        return build(value), _with_item(feature, item)
    if not pa.types.is_struct(kind):
        return kind, feature
    used = {item.name for item in kind if not _is_opened(item)}
    fields, features = [], {}
    for item in kind:
        value, inner = written(item.type, field_of(feature, item.name))
        name = item.name
        if _is_opened(item):
            name = new_name(name, used, is_image_name=True)
            used.add(name)
        fields.append(pa.field(name, value))
        features[name] = inner
    return pa.struct(fields), None if feature is None else features


def _is_opened(item: pa.Field) -> bool:
    """Whether `datasets` opens a field of a struct as images."""
    if is_list(item.type):
        ending = "file_names"
        is_names = is_text(item.type.value_type)
    else:
        ending, is_names = "file_name", is_text(item.type)
    return is_names and (item.name == ending or item.name.endswith(f"_{ending}"))


def _with_item(feature: Feature, item: Feature) -> Feature:
    if feature is None or isinstance(feature, list):
        return None if feature is None else [item]
    return {**feature, "feature": item}


def image_fields(column: str, *, is_a_list: bool) -> tuple[pa.Field, pa.Field]:
    """The output's columns for a column of images: the files, and the paths in the manifest."""
    kind = pa.list_(pa.string()) if is_a_list else pa.string()
    ending = "s" if is_a_list else ""
    return pa.field(f"{column}_file_name{ending}", kind), pa.field(f"{column}_path{ending}", kind)


def image_paths(cells: Sequence[Any]) -> list[Any]:
    """The paths that cells of images have in the manifest, for the second of `image_fields`."""
    return [
        [None if each is None else each.get("path") for each in cell]
        if isinstance(cell, list)
        else (None if cell is None else cell.get("path"))
        for cell in cells
    ]


def without_files(kind: pa.DataType) -> pa.DataType:
    """The type of a column of images in the run folder of an earlier release."""
    if is_list(kind):
        build = pa.large_list if pa.types.is_large_list(kind) else pa.list_
        return build(without_files(kind.value_type))
    return pa.struct([item for item in kind if not item.name.startswith("fpe_")])

"""The columns that are carried to the edits: their types in all files, and their values.

A column has one type in all files of a manifest, a plain one (`arrow_types`) that
`datasets.load_dataset` can load. The schema of the carried columns has the class labels and images
among them in its metadata, as `features` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline.errors import ManifestError
from pipeline.manifest.arrow_types import converted, is_list, is_uuid, plain_type, unloadable
from pipeline.manifest.columns import EDIT_TYPE, is_image_type
from pipeline.manifest.features import (
    Feature,
    class_names,
    class_without_name,
    features_of,
    holds_images,
    is_image,
    item_of,
    metadata_of,
    with_classes,
)
from pipeline.manifest.words import words_of
from pipeline.storage.folder import resolve_uri

WAS_UUID = {b"was": b"uuid"}
"""Metadata of a field whose text is UUIDs, which earlier releases carried as 16 bytes."""


IMAGE_TYPE = pa.struct(
    [
        pa.field("bytes", pa.binary()),
        pa.field("path", pa.string()),
        pa.field("fpe_uri", pa.string()),
        pa.field("fpe_data", pa.binary()),
    ]
)
"""An image that is carried, on its way to the output: the manifest's bytes and path, the absolute
URI of an image that has only a path, and the bytes that were found there."""


def carried_schema(
    schemas: Mapping[str, pa.Schema], carry: Sequence[str], leave_out: Sequence[str]
) -> pa.Schema:
    """The carried columns of these files, each with one type in all of them.

    `schemas`: the files' schemas by their labels. `leave_out`: columns that are not carried, unless
    `carry` has them. Raises ManifestError if a column has types or class labels that do not go
    together, or holds something that `datasets` cannot load.
    """
    own = []
    for label, schema in schemas.items():
        names = set(schema.names) - set(leave_out) | set(carry)
        kept = [item for item in schema if item.name in names]
        for item in kept:
            if problem := unloadable(plain_type(item.type), item.name):
                raise ManifestError(
                    f"{label}: column {problem}, which datasets.load_dataset cannot load from the "
                    "output: make it a struct or a list, or leave it out"
                )
        own.append(pa.schema([pa.field(item.name, _carried_type(schema, item)) for item in kept]))
    try:
        unified = pa.unify_schemas(own, promote_options="permissive")
    except pa.ArrowException as error:
        raise ManifestError(f"a column has different types in different files: {error}") from error
    fields = [_field(item, list(schemas.values())) for item in unified]
    features = {item.name: _feature(item, schemas) for item in fields}
    fields = [
        item.with_type(_image_type(item.type)) if holds_images(features[item.name]) else item
        for item in fields
    ]
    return pa.schema(fields, metadata_of({name: each for name, each in features.items() if each}))


def _image_type(kind: pa.DataType) -> pa.DataType:
    if not is_list(kind):
        return IMAGE_TYPE
    return pa.large_list(IMAGE_TYPE) if pa.types.is_large_list(kind) else pa.list_(IMAGE_TYPE)


def _carried_type(schema: pa.Schema, item: pa.Field) -> pa.DataType:
    is_named = item.name == EDIT_TYPE and class_names(features_of(schema).get(EDIT_TYPE))
    return pa.string() if is_named else plain_type(item.type)


def _field(item: pa.Field, schemas: Sequence[pa.Schema]) -> pa.Field:
    """A column that is null in every file has no type of its own: it is text."""
    if pa.types.is_null(item.type):
        return item.with_type(pa.string())
    kinds = [schema.field(item.name).type for schema in schemas if item.name in schema.names]
    return item.with_metadata(WAS_UUID) if all(map(is_uuid, kinds)) else item


def _feature(item: pa.Field, schemas: Mapping[str, pa.Schema]) -> Feature:
    """The feature of a column that all files agree on: with class labels, or images. None if they
    have none. Raises ManifestError if the numbers of its class labels mean different classes."""
    found: dict[str, str] = {}
    for label, schema in schemas.items():
        if item.name in schema.names and not pa.types.is_null(schema.field(item.name).type):
            each = _known_feature(item.type, features_of(schema).get(item.name))
            found.setdefault(json.dumps(each), label)
    if len(found) == 1:
        return json.loads(next(iter(found)))
    if len(found) > 1 and json.dumps(None) not in found:
        raise ManifestError(
            f"column {item.name} has other class labels in {' than in '.join(found.values())}, so "
            "the same numbers mean different classes: write all files with the same names"
        )
    return None


def _known_feature(kind: pa.DataType, feature: Feature) -> Feature:
    if is_image(feature) and pa.types.is_struct(kind) and is_image_type(kind):
        return {"_type": "Image"}
    item = item_of(feature)
    if is_image(item) and is_list(kind) and pa.types.is_struct(kind.value_type):
        return [{"_type": "Image"}] if is_image_type(kind.value_type) else None
    return with_classes(kind, feature)


def carried_column(
    name: str, column: pa.ChunkedArray, file_schema: pa.Schema, carried: pa.Schema, base: str
) -> pa.ChunkedArray:
    """The values of a file's column in the type in which it is carried. `base`: the file's folder,
    which paths of images are relative to.

    Raises pa.ArrowException and UnicodeDecodeError for values that do not fit, and ValueError for a
    class label without a name.
    """
    item, features = carried.field(name), features_of(carried)
    classes = class_names(features_of(file_schema).get(name))
    if name == EDIT_TYPE and classes:
        words = words_of(file_schema.field(name).type, classes)
        return pa.chunked_array([[words(value) or None for value in column.to_pylist()]], item.type)
    values = converted(column, item.type)
    if holds_images(features.get(name)):
        values = _with_uris(values, base)
    values.validate(full=True)  # without this, text that is not UTF-8 would be passed on
    if name in features and (number := class_without_name(values, features[name])) is not None:
        raise ValueError(f"class {number} has no name in its datasets.ClassLabel")
    return values


def _with_uris(column: pa.ChunkedArray, base: str) -> pa.ChunkedArray:
    """Images with the absolute URIs of those that have no bytes."""
    cells = column.to_pylist()
    for cell in cells:
        for image in cell if isinstance(cell, list) else [cell]:
            if image is not None and image["bytes"] is None and image["path"]:
                image["fpe_uri"] = resolve_uri(image["path"], base)
    return pa.chunked_array([cells], column.type)

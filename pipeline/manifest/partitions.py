"""Hive partitions: folders named `key=value`, whose values are columns of the files below them.

A value is decoded as in a URL, and `__HIVE_DEFAULT_PARTITION__` is null. A column of whole numbers
of 32 bits is int32, any other is text, as `pyarrow.dataset` infers it (pyarrow 26). Known columns
of the manifest have the type that they need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias
from urllib.parse import unquote

import pyarrow as pa

from pipeline.errors import ManifestError
from pipeline.manifest.arrow_types import plain_type
from pipeline.manifest.columns import _EXPECTED

NULL_VALUE = "__HIVE_DEFAULT_PARTITION__"

Texts: TypeAlias = Mapping[str, str | None]
"""The partitions of a file: decoded text by key, None for null."""


def is_partition(folder: str) -> bool:
    """Whether a folder's name is `key=value`."""
    return folder.partition("=")[0] not in ("", folder)


def partitions_of(place: str, path: str) -> dict[str, str | None]:
    """The partitions of a file.

    They are all folders `key=value` of `path`, which is relative to `place`, and those at the end
    of the URL `place`. Raises ManifestError if a key appears twice, or a text is not UTF-8.
    """
    above: list[str] = []
    for folder in reversed(place.rstrip("/").split("/")):
        if not is_partition(folder):
            break
        above.insert(0, folder)
    found: dict[str, str | None] = {}
    for folder in (*above, *path.split("/")[:-1]):
        if not is_partition(folder):
            continue
        try:
            name, value = (unquote(text, errors="strict") for text in folder.split("=", 1))
        except UnicodeDecodeError as error:
            raise ManifestError(f"{place}/{path}: folder {folder} is not UTF-8: {error}") from error
        if name in found:
            raise ManifestError(f"{place}/{path}: two of its folders are called {name}=…")
        found[name] = None if value == NULL_VALUE else value
    return found


def refuse_mixed(url: str, partitions: Mapping[str, Texts]) -> None:
    """Raises ManifestError unless all files have the same partition keys.

    `partitions`: those of every file that the manifest URL `url` names, by the file's path.
    """
    first_of: dict[frozenset[str], str] = {}
    for path, texts in partitions.items():
        first_of.setdefault(frozenset(texts), path)
    if len(first_of) > 1:
        shown = [f"{path}: {', '.join(sorted(keys)) or 'none'}" for keys, path in first_of.items()]
        raise ManifestError(
            f"the files of {url} lie in different partitions (folders named key=value): lay them "
            "out alike, or list the parts that differ as manifests of their own. One file of each:",
            shown[:5],
            total=len(shown),
        )


def partition_types(files: Sequence[tuple[Texts, pa.Schema]]) -> dict[str, pa.DataType]:
    """The type of every partition column. `files`: partitions and schema of each file.

    It is that of the column of this name in the files, if one has it and all texts fit it.
    """
    texts: dict[str, set[str]] = {}
    own: dict[str, pa.DataType] = {}
    for partitions, schema in files:
        for name, text in partitions.items():
            texts.setdefault(name, set()).update(() if text is None else (text,))
            if name in schema.names:
                index = schema.names.index(name)  # a name that appears twice is refused later
                own.setdefault(name, plain_type(schema.field(index).type))
    return {
        name: own[name] if name in own and _fit(found, own[name]) else _inferred(name, found)
        for name, found in texts.items()
    }


def _inferred(name: str, texts: Iterable[str]) -> pa.DataType:
    kinds = [pa.int32(), pa.string()]
    if name in _EXPECTED:
        is_expected = _EXPECTED[name][0]
        kinds = [k for k in (pa.string(), pa.int64(), pa.float64()) if is_expected(k)]
    found = list(texts)
    return next((kind for kind in kinds if found and _fit(found, kind)), pa.string())


def _fit(texts: Iterable[str], kind: pa.DataType) -> bool:
    try:
        for text in texts:
            value_of(text, kind)
    except pa.ArrowException:
        return False
    return True


def value_of(text: str | None, kind: pa.DataType) -> pa.Scalar:
    """A partition's value in the type of its column. Raises ArrowException if it does not fit."""
    return pa.scalar(text, pa.string()).cast(kind)

"""Folders of table formats, in which only the format's log says which files are live.

Such a folder also holds files of deleted and earlier rows. `delta` and `iceberg` read their tables'
logs, with the readers of the extras of these names; other formats are refused.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ManifestError, StorageError
from pipeline.storage.folder import Folder


class Format(StrEnum):
    """The formats whose folders are recognised, in the order in which they are looked for."""

    DELTA = "Delta"
    ICEBERG = "Iceberg"
    HUDI = "Hudi"
    PAIMON = "Paimon"
    SPARK_STREAM = "Spark streaming"


METADATA_SUFFIXES = (".metadata.json", ".metadata.json.gz")
_ICEBERG_METADATA = "metadata"
_MARKS = {
    "_delta_log": Format.DELTA,
    ".hoodie": Format.HUDI,
    "_spark_metadata": Format.SPARK_STREAM,
}
_PAIMON_MARKS = ("snapshot/LATEST", "snapshot/EARLIEST")


@dataclass(frozen=True)
class LiveFile:
    """A data file of a table with the rows that are live.

    Attributes:
        url: its URL.
        table: the URL of the table's folder.
        schema: the columns of the table.
        constants: the values of columns that are not in the file, or that its partition decides.
        dead_rows: sorted int64 numbers of the file's rows that are deleted, from 0.
        ids: the columns with their Parquet field ids, at any depth, if they are found in files by
            id; None if they are found by name.
        old_names: further names of columns in files without ids.
    """

    url: str
    table: str
    schema: pa.Schema
    constants: Mapping[str, pa.Scalar] = field(default_factory=dict)
    dead_rows: np.ndarray[Any, np.dtype[np.int64]] | None = None
    ids: pa.Schema | None = None
    old_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def is_mark(path: str) -> bool:
    """Whether a path, of a folder with a slash at its end, shows that a table is there."""
    return (
        (path.endswith("/") and path[:-1].rpartition("/")[2] in _MARKS)
        or _is_metadata(path)
        or "/".join(path.split("/")[-2:]) in _PAIMON_MARKS
    )


def tables_in(paths: Iterable[str]) -> dict[str, Format]:
    """The tables whose marks are among the paths of a folder: format by path, "" for itself."""
    found: dict[str, Format] = {}
    for path in paths:
        parts = path.split("/")
        for index, part in enumerate(parts[:-1]):
            if part in _MARKS:
                _note(found, "/".join(parts[:index]), _MARKS[part])
        if _is_metadata(path):
            _note(found, "/".join(parts[:-2]), Format.ICEBERG)
        if "/".join(parts[-2:]) in _PAIMON_MARKS:
            _note(found, "/".join(parts[:-2]), Format.PAIMON)
    return found


def _note(found: dict[str, Format], root: str, kind: Format) -> None:
    """A folder may be a table of two formats; then the first one in `Format` is read."""
    order = list(Format)
    found[root] = min(found.get(root, kind), kind, key=order.index)


def format_at(url: str, options: Mapping[str, Any]) -> Format | None:
    """The format of the table whose folder a URL is; None if it is not the folder of a table.

    It is None as well if the folder may not be looked at, and for web servers, which list nothing.
    Raises StorageError.
    """
    if url.startswith(("http://", "https://")):
        return None
    try:
        folder = Folder.open(url, options)
        marks = [kind for name, kind in _MARKS.items() if folder.exists(name)]
        if any(map(_is_metadata, folder.glob(f"{_ICEBERG_METADATA}/*"))):
            marks.append(Format.ICEBERG)
        if any(map(folder.is_file, _PAIMON_MARKS)):
            marks.append(Format.PAIMON)
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError):
            return None
        raise
    return min(marks, key=list(Format).index, default=None)


def _is_metadata(path: str) -> bool:
    folder, name = posixpath.split(path)
    return posixpath.basename(folder) == _ICEBERG_METADATA and name.endswith(METADATA_SUFFIXES)


def reader_is_missing(url: str, kind: Format, extra: str, package: str) -> ManifestError:
    """The error for a table whose reader is not installed."""
    return ManifestError(
        f"{url} is the folder of a table in the format {kind}: it also holds files of deleted and "
        "earlier rows, and only the table's log says which are live. To read it, install "
        f"{package} (the extra `{extra}`), or write its rows to plain Parquet files"
    )

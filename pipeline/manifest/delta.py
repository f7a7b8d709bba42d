"""Reads which files of a Delta table are live, with the package deltalake.

The log is copied to a temporary folder first: so the store is read with the job's own credentials,
and any store will do.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa

from pipeline.errors import ManifestError, StorageError
from pipeline.manifest.table_formats import Format, LiveFile, reader_is_missing
from pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from deltalake import DeltaTable

_LOG = "_delta_log"
_READ_FEATURES = {
    "deletionVectors",
    "timestampNtz",
    "typeWidening",
    "typeWidening-preview",
    "v2Checkpoint",
    "vacuumProtocolCheck",
}
"""The reader features that are supported. With columnMapping, columns have other names in files."""


def live_files_of_delta(root: Folder) -> list[LiveFile]:
    """The live files of the table in a folder, at its newest version.

    Raises ManifestError if deltalake is missing, if the log is damaged, or if the table needs a
    feature that is not supported; StorageError.
    """
    try:
        from deltalake import DeltaTable
    except ImportError as error:
        raise reader_is_missing(root.url, Format.DELTA, "delta", "deltalake") from error
    with tempfile.TemporaryDirectory(prefix="fpe-delta-") as name:
        place = Path(name).resolve()
        try:
            for path in _log_files(root):
                _copy(root, path, place)
            table = DeltaTable(str(place))
            _refuse_features(root, table)
            dead_rows = _dead_rows(root, table, place)
            adds = pa.table(table.get_add_actions(flatten=True))
            if unknown := dead_rows.keys() - set(map(unquote, adds["path"].to_pylist())):
                raise ManifestError(
                    f"the Delta table {root.url} has a deletion vector of {min(unknown)}, which is "
                    "not among its files: write its rows to plain Parquet files"
                )
            schema = pa.schema(table.schema().to_arrow())
        except (ManifestError, StorageError):
            raise
        except Exception as error:  # deltalake's own, of several kinds
            raise ManifestError(f"the Delta table {root.url} cannot be read: {error}") from error
    names = [name for name in adds.column_names if name.startswith("partition.")]
    return [
        LiveFile(
            url=_url(root, path),
            table=root.url,
            schema=schema,
            constants={
                name.removeprefix("partition."): adds[name][index].cast(
                    schema.field(name.removeprefix("partition.")).type
                )
                for name in names
            },
            dead_rows=dead_rows.get(unquote(path)),
        )
        for index, path in enumerate(adds["path"].to_pylist())
    ]


def _url(root: Folder, path: str) -> str:
    """Paths in the log are encoded as in URLs, and absolute in a shallow clone."""
    path = unquote(path)
    if path.startswith("file:"):
        return urlsplit(path).path
    return path if "://" in path or path.startswith("/") else root.url_of(path)


def _log_files(root: Folder) -> list[str]:
    """Paths of the log's files that the newest version needs."""
    paths = root.list(_LOG)
    since = 0
    if f"{_LOG}/_last_checkpoint" in paths:
        since = int(json.loads(root.read(f"{_LOG}/_last_checkpoint"))["version"])
    versions = {path: re.match(r"(\d{20})\.", path.removeprefix(f"{_LOG}/")) for path in paths}
    return [
        path for path, version in versions.items() if version is None or int(version[1]) >= since
    ]


def _copy(root: Folder, path: str, place: Path) -> None:
    file = place / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(root.read(path))


def _refuse_features(root: Folder, table: DeltaTable) -> None:
    """Raises ManifestError for a table whose files cannot be read as they are."""
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    features = set(table.protocol().reader_features or ()) - _READ_FEATURES
    if mapping == "none":
        features.discard("columnMapping")
    else:
        features.add("columnMapping")
    if features:
        raise ManifestError(
            f"the Delta table {root.url} uses {', '.join(sorted(features))}, which is not read "
            "here: write its rows to plain Parquet files, or to a Delta table without that feature"
        )


def _dead_rows(
    root: Folder, table: DeltaTable, place: Path
) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """The deleted rows of each file that has a deletion vector, by the file's path."""
    if "deletionVectors" not in (table.protocol().reader_features or ()):
        return {}
    for path in root.list():
        if re.search(r"(^|/)deletion_vector_[^/]*\.bin$", path):
            _copy(root, path, place)
    found = {}
    vectors = pa.table(table.deletion_vectors())
    for uri, is_live in zip(vectors["filepath"].to_pylist(), vectors[1], strict=True):
        mask = is_live.values.to_numpy(zero_copy_only=False)
        path = unquote(urlsplit(uri).path if uri.startswith("file:") else uri)
        found[path.removeprefix(f"{place}/")] = np.flatnonzero(~mask)
    return found

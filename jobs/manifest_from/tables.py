"""Datasets of the hub in a folder: Parquet as the hub has it, or Arrow as `datasets` saves it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.manifest_from.source import Picture, Row
from pipeline.errors import ManifestError

_ROWS = 64
"""How many rows of a file are in memory at a time; each may hold three pictures."""
_SHARD = re.compile(r"^(?P<split>.+?)-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class TableFile:
    """A file of rows; `split` is as its name says ("" if it does not), `folder` that it is in."""

    path: Path
    split: str
    schema: pa.Schema

    @property
    def folder(self) -> str:
        return self.path.parent.name

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Its rows with these columns. Raises ManifestError for a damaged file."""
        try:
            yield from self._rows(columns)
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{self.path} cannot be read: {error}") from error

    def _rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        if self.path.suffix == ".parquet":
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(_ROWS, columns=list(columns)):
                    yield from batch.to_pylist()
            return
        with pa.memory_map(str(self.path)) as data, pa.ipc.open_stream(data) as stream:
            for batch in stream:
                for first in range(0, batch.num_rows, _ROWS):
                    yield from batch.select(list(columns)).slice(first, _ROWS).to_pylist()


def table_files(
    source: Path, wanted: Mapping[str, str], what: str, split: str | None
) -> list[TableFile]:
    """The files of a dataset, in the order of their paths.

    Args:
        source: the dataset's folder, or one file of it.
        wanted: the columns that are read, and what they hold: "text", "number" or "image".
        what: the dataset, for messages.
        split: only its files; None for all.

    Raises:
        ManifestError: there is no such file, or one that lacks a column; says what it has.
    """
    paths = [source] if source.is_file() else sorted(_tables_in(source))
    if not paths:
        raise ManifestError(
            f"{source} is not {what}: it has no .parquet file, and no .arrow file as "
            "datasets' save_to_disk writes them"
        )
    files = [TableFile(path, _split_of(path, source), _schema_of(path)) for path in paths]
    if split is not None:
        names = sorted({file.split for file in files})
        files = [file for file in files if file.split == split]
        if not files:
            there = ", ".join(name or "files without one" for name in names)
            raise ManifestError(f"{source} has no split {split!r}; there are {there}")
    for file in files:
        if missing := [name for name in wanted if not _fits(file.schema, name, wanted[name])]:
            found = ", ".join(f"{each.name} ({each.type})" for each in file.schema)
            raise ManifestError(
                f"{file.path} is not of {what}: it needs the columns "
                f"{', '.join(f'{name} ({kind})' for name, kind in wanted.items())}, and "
                f"{', '.join(missing)} is not there or holds something else. It has {found}"
            )
    return files


def _tables_in(folder: Path) -> Iterator[Path]:
    for pattern in ("**/*.parquet", "**/*.arrow"):
        for path in folder.glob(pattern):
            is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if not is_hidden and not path.name.startswith("cache-"):  # of `datasets`' map
                yield path


def _split_of(path: Path, source: Path) -> str:
    """From `train-00000-of-00031-453c.parquet`, or from the folder that save_to_disk made, which is
    none if a dataset of one split was saved."""
    if path.suffix == ".arrow" and path.name.startswith("data-"):
        return "" if path.parent == source else path.parent.name
    found = _SHARD.match(path.name)
    return found["split"] if found else ""


def _schema_of(path: Path) -> pa.Schema:
    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path)
        with pa.memory_map(str(path)) as data, pa.ipc.open_stream(data) as stream:
            return stream.schema
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error


def _fits(schema: pa.Schema, name: str, kind: str) -> bool:
    if name not in schema.names:
        return False
    found = schema.field(name).type
    if kind == "image":
        fields = {each.name for each in found} if pa.types.is_struct(found) else set()
        return "bytes" in fields
    if kind == "number":
        return bool(pa.types.is_integer(found))
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found))


def picture_of(row: Row, cell: Mapping[str, Any] | None, column: str) -> Picture | None:
    """The picture in a cell; without bytes there is none, and the row has a problem."""
    data = (cell or {}).get("bytes")
    if not data:
        row.problems.append(f"the entry has no bytes in {column}")
        return None
    return Picture(data=data)

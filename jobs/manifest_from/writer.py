"""Writes the rows of a source to a manifest, row group by row group.

Rows that no job could plan (they name no picture, or ask for nothing) would make a job refuse the
whole manifest. They are written to a file of their own, with the same columns. All other rows are
in the manifest, also if their picture is not there: a run then says so for that row.
"""

from __future__ import annotations

import collections
import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.manifest_from.source import TEXT, Entries, Picture, Row
from pipeline.errors import JobError, ManifestError
from pipeline.manifest.features import metadata_of
from pipeline.storage.local_files import TEMPORARY_PREFIX

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""An embedded picture, as Hugging Face's datasets have it."""
_MOST_ROWS, _MOST_BYTES = 100, 64 * 2**20
"""Of a row group. An image's row group is read by one task."""


@dataclass
class Written:
    """What was written.

    Attributes:
        manifest: its path.
        unplanned: the path of the rows that no job could plan; None if there are none.
        rows, edits: in the manifest.
        unplanned_rows: in the other file.
        with_problems: rows of both files that have a problem.
        edit_types: edits of the manifest by type; "" for those without one.
        first_problems: of the first few rows that have some, (id, problem).
    """

    manifest: Path
    unplanned: Path | None = None
    rows: int = 0
    edits: int = 0
    unplanned_rows: int = 0
    with_problems: int = 0
    edit_types: collections.Counter[str] = field(default_factory=collections.Counter)
    first_problems: list[tuple[str, str]] = field(default_factory=list)


def unplanned_path(manifest: Path) -> Path:
    """Where the rows go that no job could plan: a name that is left out where a folder is read."""
    return manifest.with_name(f"_{manifest.stem}.problems.parquet")


def refuse_existing(manifest: Path) -> None:
    """Raises JobError if there is such a file, or one with its problems."""
    for file in (manifest, unplanned_path(manifest)):
        if file.exists():
            raise JobError(f"{file} already exists; name another file with --output")


def write_manifest(
    manifest: Path,
    entries: Entries,
    *,
    embed: bool = False,
    look: Callable[[Row], None] | None = None,
) -> Written:
    """Writes all rows of `entries`; files appear when they are whole, and never over others.

    Args:
        manifest: the Parquet file; its folder is made if need be.
        embed: whether pictures are put into it as bytes; else it has their paths, relative to it
            where they lie below its folder.
        look: called with every row that is in the manifest.

    Raises:
        JobError: there is such a file.
        ManifestError: there is no row.
    """
    refuse_existing(manifest)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    written, seen = Written(manifest), set[str]()
    form = _Form(entries, manifest.parent.resolve(), embed or entries.has_bytes)
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(_NewFile.open(manifest, form))
        other = stack.enter_context(_NewFile.open(unplanned_path(manifest), form))
        for row in entries.rows:
            _check(row, seen)
            form.read(row)
            is_planned = row.can_be_planned and row.id not in seen
            seen.add(row.id)
            (good if is_planned else other).add(form.values_of(row))
            _count(written, row, is_planned=is_planned)
            if is_planned and look is not None:
                look(row)
        if not written.rows and not written.unplanned_rows:
            raise ManifestError("the set has no entries")
        good.publish()
        if written.unplanned_rows:
            other.publish()
            written.unplanned = unplanned_path(manifest)
    return written


def _check(row: Row, seen: set[str]) -> None:
    """Notes what keeps a row from being planned, unless its source did."""
    if row.id in seen:
        row.problems.append(f"an earlier entry has the id {row.id} too")
    if not row.prompts:
        row.problems.append("the entry has neither a target prompt nor an instruction")
    if not row.can_be_planned and not row.problems:
        row.problems.append("the entry has neither a picture nor a source prompt with a seed")


def _count(written: Written, row: Row, *, is_planned: bool) -> None:
    if row.problems:
        written.with_problems += 1
        if len(written.first_problems) < 10:
            written.first_problems.append((row.id, "; ".join(row.problems)))
    if not is_planned:
        written.unplanned_rows += 1
        return
    written.rows += 1
    written.edits += len(row.prompts)
    written.edit_types[row.values.get("edit_type") or ""] += len(row.prompts)


class _Form:
    """How rows are written: the schema, and where pictures are."""

    def __init__(self, entries: Entries, folder: Path, is_embedded: bool) -> None:
        self._folder, self._is_embedded = folder, is_embedded
        picture = _IMAGE if is_embedded else TEXT
        answers = [pa.field("reference", picture)] if entries.has_references else []
        fields = [pa.field("id", TEXT), pa.field("image", picture), *entries.columns, *answers]
        schema = pa.schema([*fields, pa.field("problem", TEXT)])
        self.schema = schema.with_metadata(metadata_of(_features(schema)))

    def read(self, row: Row) -> None:
        """Reads pictures that are embedded, and adds a problem for those that cannot be read."""
        if self._is_embedded:
            row.image = _loaded(row, row.image)
            row.reference = _loaded(row, row.reference)

    def values_of(self, row: Row) -> dict[str, Any]:
        values = {name: row.values.get(name) for name in self.schema.names}
        values |= {"id": row.id, "problem": "; ".join(row.problems) or None}
        values["image"] = self._cell(row.image)
        if "reference" in values:
            values["reference"] = self._cell(row.reference)
        return values

    def _cell(self, picture: Picture | None) -> Any:
        if picture is None:
            return None
        path = None if picture.file is None else self._uri(picture.file)
        return {"bytes": picture.data, "path": path} if self._is_embedded else path

    def _uri(self, file: Path) -> str:
        whole = Path(os.path.abspath(file))  # noqa: PTH100 - links stay as they are
        if whole.is_relative_to(self._folder):
            return whole.relative_to(self._folder).as_posix()
        return whole.as_posix()


def _loaded(row: Row, picture: Picture | None) -> Picture | None:
    if picture is None or picture.data is not None or picture.file is None:
        return picture
    try:
        return Picture(picture.file, picture.file.read_bytes())
    except OSError as error:
        if not row.problems:
            row.problems.append(f"{picture.file} cannot be read: {error.strerror}")
        return picture


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Hugging Face's features, so that `datasets` opens embedded pictures; {} if there are none."""
    if not any(each.type == _IMAGE for each in schema):
        return {}
    return {each.name: _feature(each.type) for each in schema}


def _feature(kind: pa.DataType) -> Any:
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": str(kind), "_type": "Value"}


class _NewFile:
    """A Parquet file under a hidden name until it is whole."""

    def __init__(self, target: Path, form: _Form) -> None:
        self._target = target
        self._hidden = target.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{target.name}")
        self._form, self._rows, self._bytes = form, list[dict[str, Any]](), 0
        self._writer = pq.ParquetWriter(self._hidden, form.schema)

    @classmethod
    @contextlib.contextmanager
    def open(cls, target: Path, form: _Form) -> Iterator[_NewFile]:
        file = cls(target, form)
        try:
            yield file
        finally:
            file._writer.close()
            file._hidden.unlink(missing_ok=True)

    def add(self, values: dict[str, Any]) -> None:
        self._rows.append(values)
        self._bytes += sum(_size(value) for value in values.values())
        if len(self._rows) >= _MOST_ROWS or self._bytes >= _MOST_BYTES:
            self._flush()

    def publish(self) -> None:
        """Gives the file its name. Raises JobError if somebody else has written one meanwhile."""
        self._flush()
        self._writer.close()
        try:
            self._target.hardlink_to(self._hidden)
        except FileExistsError:
            refuse_existing(self._target)
            raise
        except OSError:  # a disk without hard links
            refuse_existing(self._target)
            self._hidden.rename(self._target)

    def _flush(self) -> None:
        if self._rows:
            try:
                table = pa.Table.from_pylist(self._rows, schema=self._form.schema)
            except (pa.ArrowException, TypeError) as error:
                ids = f"{self._rows[0]['id']} to {self._rows[-1]['id']}"
                raise ManifestError(
                    f"entries {ids} have a value of another type: {error}"
                ) from error
            self._writer.write_table(table)
        self._rows, self._bytes = [], 0


def _size(value: Any) -> int:
    if isinstance(value, dict):
        value = value["bytes"]
    return len(value) if isinstance(value, bytes) else 0

"""Reads which files and rows of an Iceberg table are live, with the package pyiceberg."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ManifestError, StorageError
from pipeline.manifest.table_formats import (
    METADATA_SUFFIXES,
    Format,
    LiveFile,
    reader_is_missing,
)
from pipeline.storage.folder import Folder, absolute_url

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.manifest import DataFile
    from pyiceberg.schema import Schema
    from pyiceberg.table import FileScanTask, StaticTable

_METADATA = "metadata"
_HINT = f"{_METADATA}/version-hint.text"


def current_metadata(root: Folder) -> str:
    """The URL of a table's current metadata file, by the hint that a catalog of files leaves.

    Raises ManifestError if there is no hint: then only the catalog knows, since a commit that
    failed can leave a newer file.
    """
    paths = [p for p in root.glob(f"{_METADATA}/*") if p.endswith(METADATA_SUFFIXES)]
    if root.is_file(_HINT):
        hint = root.read(_HINT).decode(errors="replace").strip()
        version = int(hint) if hint.isdecimal() else None
        while version is not None and any(
            f"{_METADATA}/v{version + 1}{end}" in paths for end in METADATA_SUFFIXES
        ):
            version += 1  # the hint is written after the file, and may be late
        name = hint if version is None else f"v{version}"
        for path in (f"{_METADATA}/{name}{end}" for end in ("", *METADATA_SUFFIXES)):
            if path in paths:
                return root.url_of(path)
    newest = max(paths, key=lambda path: [int(digits) for digits in re.findall(r"\d+", path)[:1]])
    raise ManifestError(
        f"{root.url} is the folder of an Iceberg table, and it also holds files of deleted and "
        "earlier rows. Its catalog says which metadata file is the current one: name that file as "
        f"the manifest (the newest one here is {root.url_of(newest)})"
    )


def live_files_of_iceberg(metadata_url: str, options: Mapping[str, Any]) -> list[LiveFile]:
    """The live files of the table of a metadata file, with the rows that are deleted in each.

    Raises ManifestError if pyiceberg is missing, if the metadata are damaged, or if the table needs
    something that is not supported; StorageError.
    """
    try:
        import pyiceberg  # noqa: F401
    except ImportError as error:
        raise reader_is_missing(metadata_url, Format.ICEBERG, "iceberg", "pyiceberg") from error
    try:
        table = _table(metadata_url, _store_io(options))
        return list(_live_files(table, metadata_url, options))
    except (ManifestError, StorageError):
        raise
    except Exception as error:  # pyiceberg's own, of several kinds
        advice = ""
        if "equality deletes" in str(error):
            advice = "; rewrite the table's data files (compact it), which applies the deletes"
        raise ManifestError(
            f"the Iceberg table of {metadata_url} cannot be read: {error}{advice}"
        ) from error


def _table(url: str, store: FileIO) -> StaticTable:
    from pyiceberg.catalog.noop import NoopCatalog
    from pyiceberg.serializers import FromInputFile
    from pyiceberg.table import StaticTable

    metadata = FromInputFile.table_metadata(store.new_input(url))
    return StaticTable(("static", url), metadata, url, store, NoopCatalog("static"))


def _live_files(
    table: StaticTable, metadata_url: str, options: Mapping[str, Any]
) -> Iterator[LiveFile]:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    schema = table.schema()
    arrow = schema_to_pyarrow(schema, include_field_ids=False)
    with_ids = schema_to_pyarrow(schema, include_field_ids=True)
    mapping = table.name_mapping()
    old_names = {
        schema.find_column_name(each.field_id) or "": tuple(each.names)
        for each in (() if mapping is None else mapping)
        if each.field_id is not None
    }
    root = metadata_url.rpartition(f"/{_METADATA}/")[0]
    deletes = cache(lambda file: _deletes(file, options))
    for task in table.scan().plan_files():
        if task.file.file_format != "PARQUET":
            raise ManifestError(
                f"the Iceberg table of {metadata_url} has data files in the format "
                f"{task.file.file_format}; only Parquet is read"
            )
        numbers = [
            positions
            for file in task.delete_files
            for name, positions in deletes(file).items()
            if name == task.file.file_path
        ]
        yield LiveFile(
            url=_url(task.file.file_path),
            table=root,
            schema=arrow,
            constants=_constants(table, schema, arrow, task),
            dead_rows=np.unique(np.concatenate(numbers)) if numbers else None,
            ids=with_ids,
            old_names=old_names,
        )


def _constants(
    table: StaticTable, schema: Schema, arrow: pa.Schema, task: FileScanTask
) -> dict[str, pa.Scalar]:
    """The values of columns that a file may lack: of its partition, else the column's default."""
    from pyiceberg.transforms import IdentityTransform

    values: dict[str, Any] = {
        column.name: column.initial_default
        for column in schema.fields
        if column.initial_default is not None
    }
    for index, part in enumerate(table.specs()[task.file.spec_id].fields):
        name = schema.find_column_name(part.source_id) or ""
        if isinstance(part.transform, IdentityTransform) and name in arrow.names:
            values[name] = task.file.partition[index]
    return {name: pa.scalar(value, arrow.field(name).type) for name, value in values.items()}


def _deletes(
    file: DataFile, options: Mapping[str, Any]
) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """The deleted rows of a delete file, by the data file's path in the metadata."""
    from pyiceberg.table.deletion_vector import deletion_vectors_from_puffin_file
    from pyiceberg.table.puffin import PuffinFile

    data = _read(file.file_path, options)
    if file.file_format == "PUFFIN":
        vectors = deletion_vectors_from_puffin_file(PuffinFile(data))
        return {each.referenced_data_file: each.to_vector().to_numpy() for each in vectors}
    if file.file_format != "PARQUET":
        raise ManifestError(f"{file.file_path}: deletes in this format are not read")
    table = pq.read_table(io.BytesIO(data), columns=["file_path", "pos"])
    return {
        name: table.filter(pc.field("file_path") == name)["pos"].to_numpy()
        for name in table["file_path"].unique().to_pylist()
    }


def _url(location: str) -> str:
    """A location as Iceberg's writers spell it (`file:/a`, `file:///a`), as the pipeline does."""
    return absolute_url(re.sub(r"^file:/+", "/", location))


def _read(location: str, options: Mapping[str, Any]) -> bytes:
    folder, _, name = _url(location).rpartition("/")
    return Folder.open(folder or "/", options).read(name)


def _store_io(options: Mapping[str, Any]) -> FileIO:
    """Reads metadata with the job's own clients and credentials. Files of metadata are small."""
    from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile

    class StoredFile(InputFile):
        def __len__(self) -> int:
            return len(_read(self.location, options))

        def exists(self) -> bool:
            raise NotImplementedError  # only needed to write

        def open(self, seekable: bool = True) -> InputStream:  # noqa: ARG002, FBT
            return io.BytesIO(_read(self.location, options))

    class Store(FileIO):
        def new_input(self, location: str) -> InputFile:
            return StoredFile(location)

        def new_output(self, location: str) -> OutputFile:
            raise NotImplementedError

        def delete(self, location: str | InputFile | OutputFile) -> None:
            raise NotImplementedError

    return Store()

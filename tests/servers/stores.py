"""The stores that tests run on, with the same code: a local folder, a real S3 server, memory://.

    def test_something(store: Store) -> None:
        folder = store.folder("run")

Every test has a place of its own that is empty. `put` and `raw` go past our own storage code: to
the disk, by another client to the server, into memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage.folder import Folder
from tests.servers.s3_server import S3Server

STORES = ("local", "s3", "memory")


class _Place(Protocol):
    """Where a store keeps its bytes. Paths have `/` and no `/` at their start."""

    def put(self, path: str, data: bytes) -> None: ...
    def raw(self) -> dict[str, bytes]: ...


@dataclass(frozen=True)
class Store:
    """An empty place in a store, for one test."""

    name: str
    root: str
    place: _Place
    storage_options: dict[str, Any] = field(default_factory=dict)

    def url(self, path: str = "") -> str:
        """The URL of a path in the place, without a slash at its end."""
        return f"{self.root}/{path}" if path else self.root

    def folder(self, path: str = "") -> Folder:
        return Folder.open(self.url(path), self.storage_options)

    def put(self, path: str, data: bytes) -> str:
        """Puts bytes there as they are, over what was there; returns the URL."""
        self.place.put(path, data)
        return self.url(path)

    def put_table(self, path: str, columns: dict[str, Any] | pa.Table) -> str:
        """Puts a Parquet file there; returns its URL."""
        sink = pa.BufferOutputStream()
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, sink)
        return self.put(path, sink.getvalue().to_pybytes())

    def raw(self, path: str = "") -> dict[str, bytes]:
        """All bytes under a path, by their path in the place."""
        files = self.place.raw()
        return {name: data for name, data in sorted(files.items()) if name.startswith(path)}


@dataclass(frozen=True)
class _OnDisk:
    folder: Path

    def put(self, path: str, data: bytes) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def raw(self) -> dict[str, bytes]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}


@dataclass(frozen=True)
class _OnS3:
    server: S3Server

    def put(self, path: str, data: bytes) -> None:
        self.server.put(path, data)

    def raw(self) -> dict[str, bytes]:
        return _OnDisk(self.server.file("")).raw()


@dataclass(frozen=True)
class _InMemory:
    root: str

    def put(self, path: str, data: bytes) -> None:
        MemoryFileSystem().pipe_file(f"{self.root}/{path}", data)

    def raw(self) -> dict[str, bytes]:
        start = f"/{self.root}/"
        files = MemoryFileSystem.store.items()
        return {n.removeprefix(start): f.getvalue() for n, f in files if n.startswith(start)}


def store_on_disk(place: Path) -> Store:
    """For tests of what does not depend on the store."""
    place.mkdir()
    return Store("local", str(place), _OnDisk(place))


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty place in each kind of store."""
    if request.param == "local":
        return store_on_disk(tmp_path / "store")
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_process").with_fresh_prefix()
        root = server.url("").rstrip("/")
        return Store("s3", root, _OnS3(server), server.storage_options)
    root = f"{tmp_path.parent.name}-{tmp_path.name}"
    return Store("memory", f"memory://{root}", _InMemory(root))

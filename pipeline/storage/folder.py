"""A folder on any fsspec URL, whose files are written once.

Existing files are not overwritten, except summaries and heartbeats, with `Folder.replace`, and not
removed, except old plans, with `Folder.remove`. A file of zero bytes counts as missing, and its
name as free: it is left by a failed write. `requests` retries and counts the requests.

What an exclusive create (`Folder.write_new`) guarantees on each store:

- local disk: the file appears with its whole content, and of several writers one wins (a hidden
  temporary file is linked to its name; a file of zero bytes is replaced under a lock on it). The
  file and its entry in the folder are synced before the call returns. On disks without hard links
  the file is renamed after a check that the name is free: still whole, but two writers at the same
  instant can both succeed.
- memory://: of several writers in this process one wins.
- S3: a conditional put; of several writers one wins. With servers that ignore `If-None-Match` (such
  as rclone), and with those that refuse it (501, or 400 with words to that effect), only the check
  before the put remains, which is always done: an earlier file is safe, but of two writers at the
  same instant one can overwrite the other. See `exclusive_put`.
- other stores (GCS, Azure): the same call of fsspec, not tested here; rely on the check only.
"""

from __future__ import annotations

import glob
import io
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeAlias, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pipeline.errors import AlreadyExistsError, StorageError
from pipeline.storage.clients import filesystem_of, uncached_options
from pipeline.storage.exclusive_put import create_remote, put
from pipeline.storage.file_uris import path_of_file_uri, with_slashes
from pipeline.storage.listing import pages
from pipeline.storage.local_files import TEMPORARY_PREFIX, create_local, replace_local, sync_folder
from pipeline.storage.requests import (
    RetryingFile,
    count_bytes,
    explain,
    with_retries,
)
from pipeline.storage.spans import SpanFile

_T = TypeVar("_T")
Paths: TypeAlias = list[str]


@dataclass(frozen=True)
class Level:
    """The names of what is directly in a folder, sorted."""

    folders: Paths
    files: Paths


@dataclass(frozen=True)
class Folder:
    """A folder on any fsspec URL. Paths are relative to it, with `/`, without `..`.

    `url` is absolute, so the object can be sent to other processes; it pickles as url and options.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any] | None = None) -> Self:
        """The folder at a URL or local path; it does not have to exist. Raises StorageError."""
        folder = cls(absolute_url(url).rstrip("/") or "/", dict(options or {}))
        folder.fs  # noqa: B018  # raises for an unknown protocol now, not during the run
        return folder

    @cached_property
    def fs(self) -> fsspec.AbstractFileSystem:
        return filesystem_of(self.url, self.options)[0]

    @cached_property
    def root(self) -> str:
        """The folder's path in its file system, without a slash at the end."""
        return filesystem_of(self.url, self.options)[1].rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options}

    def path_of(self, path: str) -> str:
        """The path of a file of the folder in its file system. StorageError if it is outside."""
        if path.startswith("/") or "\\" in path or ".." in path.split("/"):
            raise StorageError(f"{path!r} is not a path inside {self.url}")
        return f"{self.root}/{path}" if path else self.root

    def url_of(self, path: str) -> str:
        """The URL of a path in the folder, for people and other programs."""
        return f"{self.url}/{path}" if path else self.url

    @property
    def _is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def read(self, path: str) -> bytes:
        """The file's content. Raises StorageError, with FileNotFoundError as cause if missing."""
        full = self.path_of(path)
        data = self._ask(path, lambda: cast(bytes, self.fs.cat_file(full)))
        count_bytes(read=len(data))
        return data

    def exists(self, path: str) -> bool:
        """Whether there is a folder, or a file that is not empty. Does not use fsspec's cache."""
        full = self.path_of(path)

        def ask() -> bool:
            self.fs.invalidate_cache(posixpath.dirname(full))
            try:
                info = self.fs.info(full)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return bool(info["type"] == "directory" or info["size"] != 0)

        return self._ask(path, ask)

    def is_file(self, path: str) -> bool:
        """Whether there is a file."""
        full = self.path_of(path)

        def ask() -> bool:  # fsspec's isfile returns False on any error
            try:
                return bool(self.fs.info(full)["type"] == "file")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return False

        return self._ask(path, ask)

    def size(self, path: str) -> int:
        """The size of a file in bytes. Raises StorageError."""
        full = self.path_of(path)
        return self._ask(path, lambda: int(self.fs.info(full)["size"]))

    def modified(self, path: str) -> float:
        """When a file was written, by the store's own clock, in seconds since 1970.

        Raises StorageError.
        """
        full = self.path_of(path)

        def ask() -> float:
            self.fs.invalidate_cache(posixpath.dirname(full))
            return float(self.fs.modified(full).timestamp())

        return self._ask(path, ask)

    @contextmanager
    def open_read(self, path: str) -> Iterator[BinaryIO]:
        """Opens a file to read it piece by piece, mostly from its beginning to its end.

        Raises StorageError if it cannot be opened, or on an object store if a piece cannot be read.
        """
        with self._open(path) as file:
            if not isinstance(file, RetryingFile):
                yield file
                return
            with io.BufferedReader(file) as buffered:
                yield cast(BinaryIO, buffered)

    @contextmanager
    def open_spans(self, path: str) -> Iterator[BinaryIO]:
        """Opens a file to read pieces of it in any order: a `SpanFile`, but for a local file.

        Raises StorageError as `open_read` does.
        """
        with self._open(path, **uncached_options(self.fs)) as file:
            if not isinstance(file, RetryingFile):
                yield file
                return
            with SpanFile(cast(BinaryIO, file)) as spans:
                yield cast(BinaryIO, spans)

    @contextmanager
    def _open(self, path: str, **options: Any) -> Iterator[BinaryIO | RetryingFile]:
        """A file whose reads are retried, if it is on a store and can seek."""
        full = self.path_of(path)
        file = self._ask(path, lambda: cast(BinaryIO, self.fs.open(full, "rb", **options)))
        with file:
            if self._is_local or not file.seekable():
                yield file
            else:
                yield RetryingFile(file, lambda read: self._ask(path, read, is_counted=False))

    def list(self, prefix: str = "", *, empty_too: bool = False) -> Paths:
        """Paths of all files under a subfolder, including hidden ones, sorted; [] if there is none.

        Temporary files that a crash of `write_new` left are not listed, files of zero bytes only if
        `empty_too`.
        """
        full = self.path_of(prefix)

        def ask() -> Iterable[dict[str, Any]]:
            self.fs.invalidate_cache(full)
            try:
                return cast(dict[str, dict[str, Any]], self.fs.find(full, detail=True)).values()
            except FileNotFoundError:
                return ()

        found = (e["name"] for e in self._ask(prefix, ask) if empty_too or e["size"] != 0)
        names = (name[len(self.root) + 1 :] for name in found)
        return sorted(n for n in names if not posixpath.basename(n).startswith(TEMPORARY_PREFIX))

    def versions(self, prefix: str = "") -> dict[str, tuple[int, str]]:
        """Size and version of all files under a path, or of the file there, sorted by path; {} if
        there is none.

        The version is a text that is another one when the file is written again, such as an ETag.
        """
        full = self.path_of(prefix)

        def ask() -> Iterable[dict[str, Any]]:
            self.fs.invalidate_cache(full)
            try:
                info = self.fs.info(full)
                if info["type"] == "file":
                    return [info | {"name": full}]
                return cast(dict[str, dict[str, Any]], self.fs.find(full, detail=True)).values()
            except (FileNotFoundError, NotADirectoryError):
                return ()

        found = {e["name"][len(self.root) + 1 :]: e for e in self._ask(prefix, ask)}
        return {n: (int(found[n]["size"] or 0), _version(found[n])) for n in sorted(found)}

    def glob(self, pattern: str) -> Paths:
        """Paths of the files that match a pattern with *, ?, [] and **, sorted.

        Does not use fsspec's glob, which treats a folder that could not be listed as empty.
        """
        self.path_of(pattern)
        if "**" in pattern:
            matches = re.compile(glob_translate(pattern)).match
            return [path for path in self.list(empty_too=True) if matches(path)]
        *above, name = pattern.split("/")
        folders = [""]
        for part in above:
            folders = [f"{f}{n}/" for f in folders for n in self._matching(f, part, "directory")]
        return sorted(f"{f}{n}" for f in folders for n in self._matching(f, name, "file"))

    def _matching(self, folder: str, pattern: str, kind: str) -> Iterator[str]:
        if kind == "directory" and not glob.has_magic(pattern):
            yield pattern
            return
        matches = re.compile(glob_translate(pattern)).match
        if kind == "directory":
            yield from filter(matches, self.level(folder.rstrip("/")).folders)
        else:
            yield from self.level(folder.rstrip("/"), lambda name: bool(matches(name))).files

    def list_folders(self, prefix: str = "") -> Paths:
        """Names of the folders directly in a subfolder, sorted; [] if it does not exist."""
        return self.level(prefix).folders

    def level(self, prefix: str = "", wanted: Callable[[str], bool] = lambda _: False) -> Level:
        """What is directly in a subfolder: nothing if it does not exist.

        `wanted`: the names of the files to keep. Nothing is kept of the others, not even by the
        client, so a folder may have millions of them.
        """
        folders: list[str] = []
        files: list[str] = []
        for entries in pages(self.fs, self.path_of(prefix), partial(self._ask, prefix)):
            for name, is_folder in entries:
                if is_folder:
                    folders.append(name)
                elif wanted(name):
                    files.append(name)
        return Level(sorted(folders), sorted(files))

    def write_new(self, path: str, data: bytes, *, is_synced: bool = True) -> None:
        """Writes a file whose name must be free; the module's docstring says what is guaranteed.

        `is_synced`: False: a power failure may take the file until `sync` was called for it. Raises
        AlreadyExistsError (nothing is written) and StorageError.
        """
        full = self.path_of(path)
        if self._is_local:
            self._ask(path, lambda: create_local(full, data, is_synced=is_synced))
        else:
            self._create_remote(path, full, data)
        count_bytes(written=len(data))

    def write_if_absent(self, path: str, data: bytes, *, is_synced: bool = True) -> bool:
        """Like `write_new`, but returns False, and writes nothing, if the name is taken."""
        try:
            self.write_new(path, data, is_synced=is_synced)
        except AlreadyExistsError:
            return False
        return True

    def sync(self, paths: Iterable[str]) -> None:
        """Syncs the entries of files that were written with `is_synced=False`. Raises StorageError.

        On stores there is nothing to do: what they have answered for is written.
        """
        if self._is_local:
            for above in sorted({posixpath.dirname(path) for path in paths}):
                sync = partial(sync_folder, Path(self.path_of(above)))
                self._ask(above, sync, is_counted=False)

    def replace(self, path: str, data: bytes) -> None:
        """Writes a whole file, replacing an earlier one. For summaries and heartbeats only."""
        full = self.path_of(path)
        if self._is_local:
            self._ask(path, lambda: replace_local(full, data))
        else:
            self._ask(path, lambda: put(self.fs, full, data))
        count_bytes(written=len(data))

    def remove(self, path: str) -> None:
        """Removes a file, or a folder with all that is in it. For old plans only.

        Raises StorageError; not if there is nothing.
        """
        full = self.path_of(path)

        def ask() -> None:
            self.fs.invalidate_cache(posixpath.dirname(full))
            try:
                self.fs.rm(full, recursive=True)
            except FileNotFoundError:
                return

        self._ask(path, ask)

    def _create_remote(self, path: str, full: str, data: bytes) -> None:
        if self.exists(path):
            raise AlreadyExistsError(f"{self.url_of(path)} exists already and is never overwritten")
        create_remote(self.fs, self.url_of(path), full, data, lambda put: self._ask(path, put))

    def _ask(self, path: str, request: Callable[[], _T], *, is_counted: bool = True) -> _T:
        """Runs a request, with retries on a remote store; its errors become StorageErrors."""
        try:
            return with_retries(self.fs, request, is_counted=is_counted)
        except StorageError:
            raise
        except FileExistsError as error:
            raise AlreadyExistsError(
                f"{self.url_of(path)} exists already and is never overwritten"
            ) from error
        except Exception as error:  # every client has its own exceptions
            raise StorageError(f"{self.url_of(path)}: {explain(error)}") from error


def _version(info: Mapping[str, Any]) -> str:
    """What tells one content of a file from the next; every client names it in its own way."""
    names = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime")
    return next((str(info[n]) for n in (*names, "Last-Modified", "created") if info.get(n)), "")


def absolute_url(url: str) -> str:
    """A local path or `file:` URI as an absolute path; any other URL unchanged."""
    path = path_of_file_uri(url)
    if path is not None:
        return path
    if url.startswith(("file://", "local://")):
        url = url.split("://", 1)[1]
    if is_local_path(url):
        return os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111  # text in, text out
    return url


def folder_and_name(url: str) -> tuple[str, str]:
    """Splits a file's URL before its name. The query after it may contain slashes too."""
    is_web = url.startswith(("http://", "https://"))
    bare = re.split("[?#]", url, maxsplit=1)[0] if is_web else url
    folder, _, name = bare.rpartition("/")
    return folder, name + url[len(bare) :]


def is_local_path(url: str) -> bool:
    return "://" not in url and "::" not in url


def resolve_uri(uri: str, base: str) -> str:
    """A URI or path; if it is relative, made absolute with the folder `base`."""
    uri = with_slashes(uri)
    if "://" in uri:
        return uri
    if uri.startswith("/") or not base:
        return uri
    if is_local_path(base):
        return posixpath.normpath(posixpath.join(base, uri))
    protocol, rest = base.split("://", 1)
    joined = posixpath.normpath(posixpath.join("/" + rest, uri))
    return f"{protocol}://{joined.lstrip('/')}"

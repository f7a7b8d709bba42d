"""Files on any fsspec URL: one folder that is written once.

Nothing that exists is overwritten, except the derived summaries and the heartbeats that
`Folder.replace` is for. A file of zero bytes does not exist: it is what a failed write left, and
its name is free.

What an exclusive create (`Folder.write_new`) guarantees, by store:

- local disk: the name appears with its whole content, and of several writers one wins (a hidden
  temporary file is linked to its name). On disks without hard links a rename after a look takes the
  link's place: still whole, but two writers at the same instant can both believe they won.
- memory://: of several writers in this process one wins.
- S3: a conditional put; of several writers one wins. Servers that ignore `If-None-Match` (rclone's
  among them) leave only the look before the put, which is taken in any case: an earlier file is
  safe, two writers at the same instant are not kept apart.
- other stores (GCS, Azure): the same call of fsspec, not tested here; count on the look only.
"""

from __future__ import annotations

import errno
import glob
import os
import posixpath
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeAlias, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import AlreadyExistsError, StorageError
from pipeline.store_requests import explain, means_taken, with_retries

_TEMPORARY_PREFIX = ".tmp-"
_T = TypeVar("_T")
Paths: TypeAlias = list[str]
Entries: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True)
class Folder:
    """A folder on any fsspec URL. Paths are relative to it, with `/`, without `..`.

    `url` is absolute, so the value means the same in every process; it pickles as url and options.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any] | None = None) -> Self:
        """The folder at a URL or local path; it need not exist. Raises StorageError."""
        folder = cls(absolute_url(url).rstrip("/") or "/", dict(options or {}))
        folder.fs  # noqa: B018  # an unknown protocol shows here and not in the middle of a run
        return folder

    @cached_property
    def fs(self) -> fsspec.AbstractFileSystem:
        return filesystem_of(self.url, self.options)[0]

    @cached_property
    def root(self) -> str:
        """The folder as its file system names it, without a slash at the end."""
        return filesystem_of(self.url, self.options)[1].rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options}

    def path_of(self, path: str) -> str:
        """A path in the folder as its file system names it. Raises StorageError for one outside."""
        if path.startswith("/") or "\\" in path or ".." in path.split("/"):
            raise StorageError(f"{path!r} is no path inside {self.url}")
        return f"{self.root}/{path}" if path else self.root

    def url_of(self, path: str) -> str:
        """A path in the folder as a URL that people and other programs can use."""
        return f"{self.url}/{path}" if path else self.url

    @property
    def _is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def read(self, path: str) -> bytes:
        """The file's content. Raises StorageError, with FileNotFoundError as cause if missing."""
        full = self.path_of(path)
        return self._ask(path, lambda: cast(bytes, self.fs.cat_file(full)))

    def exists(self, path: str) -> bool:
        """Whether there is a folder, or a file that is not empty; asks the store and no cache."""
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
        return self._ask(path, lambda: bool(self.fs.isfile(full)))

    def size(self, path: str) -> int:
        """Bytes of a file. Raises StorageError."""
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
        """The file for reading piece by piece. Raises StorageError where it cannot be opened."""
        full = self.path_of(path)
        file = self._ask(path, lambda: cast(BinaryIO, self.fs.open(full, "rb")))
        with file:
            yield file

    def list(self, prefix: str = "") -> Paths:
        """Paths of all files under a folder in it, hidden ones too, sorted; [] if it is not there.

        Temporary files of `write_new` that a crash left behind are not listed.
        """
        full = self.path_of(prefix)

        def ask() -> Paths:
            self.fs.invalidate_cache(full)
            try:
                return cast(Paths, self.fs.find(full))
            except FileNotFoundError:
                return []

        names = (name[len(self.root) + 1 :] for name in self._ask(prefix, ask))
        return sorted(n for n in names if not posixpath.basename(n).startswith(_TEMPORARY_PREFIX))

    def glob(self, pattern: str) -> Paths:
        """Paths of the files that a pattern with *, ?, [] and ** finds, sorted."""
        full = glob.escape(self.root) + self.path_of(pattern)[len(self.root) :]
        found = self._ask(pattern, lambda: cast(Entries, self.fs.glob(full, detail=True).values()))
        return sorted(e["name"][len(self.root) + 1 :] for e in found if e["type"] == "file")

    def list_folders(self, prefix: str = "") -> Paths:
        """Names of the folders directly in a folder in it, sorted; [] if it is not there."""
        full = self.path_of(prefix)

        def ask() -> Entries:
            self.fs.invalidate_cache(full)
            try:
                return cast(Entries, self.fs.ls(full, detail=True))
            except (FileNotFoundError, NotADirectoryError):
                return []

        entries = self._ask(prefix, ask)
        return sorted(
            posixpath.basename(entry["name"].rstrip("/"))
            for entry in entries
            if entry["type"] == "directory"
        )

    def write_new(self, path: str, data: bytes) -> None:
        """Writes a file whose name must be free; see the module's text for what that guarantees.

        Raises AlreadyExistsError (nothing is written) and StorageError.
        """
        full = self.path_of(path)
        if self._is_local:
            self._ask(path, lambda: _create_local(full, data))
        else:
            self._create_remote(path, full, data)

    def write_if_absent(self, path: str, data: bytes) -> bool:
        """`write_new` that returns False, and writes nothing, where the name is taken."""
        try:
            self.write_new(path, data)
        except AlreadyExistsError:
            return False
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Writes a file, whole, over an earlier one. For derived summaries and heartbeats only."""
        full = self.path_of(path)
        if self._is_local:
            self._ask(path, lambda: _replace_local(full, data))
        else:
            self._ask(path, lambda: self.fs.pipe_file(full, data))

    def _create_remote(self, path: str, full: str, data: bytes) -> None:
        if self.exists(path):
            raise AlreadyExistsError(f"{self.url_of(path)} exists already and is never overwritten")
        tries = 0

        def create() -> None:
            nonlocal tries
            tries += 1
            if tries > 1 and self._holds(full, data):
                return  # an earlier try got through and only its answer was lost
            self.fs.pipe_file(full, data, mode="create")

        try:
            self._ask(path, create)
        except StorageError as error:
            # The client below retries on its own, so a refusal can be the echo of our own success.
            if not means_taken(error.__cause__):
                raise
            if self._holds(full, b""):
                self.replace(path, data)
            elif not self._holds(full, data):
                raise AlreadyExistsError(
                    f"{self.url_of(path)} was written by someone else meanwhile"
                ) from error

    def _holds(self, full: str, data: bytes) -> bool:
        try:
            return bool(self.fs.cat_file(full) == data)
        except FileNotFoundError:
            return False

    def _ask(self, path: str, request: Callable[[], _T]) -> _T:
        """Runs a request, with retries on a remote store; its errors become StorageErrors."""
        try:
            return with_retries(self.fs, request)
        except StorageError:
            raise
        except FileExistsError as error:
            raise AlreadyExistsError(
                f"{self.url_of(path)} exists already and is never overwritten"
            ) from error
        except Exception as error:  # every client has its own tree of errors
            raise StorageError(f"{self.url_of(path)}: {explain(error)}") from error


def absolute_url(url: str) -> str:
    """A local path made absolute; any other URL as it is. `file://` is dropped."""
    if url.startswith(("file://", "local://")):
        url = url.split("://", 1)[1]
    if is_local_path(url):
        return os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111  # text in, text out
    return url


def is_local_path(url: str) -> bool:
    return "://" not in url and "::" not in url


def resolve_uri(uri: str, base: str) -> str:
    """A URI or path, made absolute by the folder `base` where it is relative."""
    if "://" in uri:
        return uri
    if uri.startswith("/") or not base:
        return uri
    if is_local_path(base):
        return posixpath.normpath(posixpath.join(base, uri))
    protocol, rest = base.split("://", 1)
    joined = posixpath.normpath(posixpath.join("/" + rest, uri))
    return f"{protocol}://{joined.lstrip('/')}"


def filesystem_of(url: str, options: Mapping[str, Any]) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the URL's path in it. Raises StorageError.

    Options go to object stores only: a job has one set of them, while its manifest, sources and
    output may lie in several places, and local disks and web servers would choke on them.
    """
    if "\0" in url:
        raise StorageError(f"{url!r} holds a NUL character")
    if "://" not in url:  # a path may hold "::" or "#", which are more than characters in a URL
        return LocalFileSystem(), os.path.abspath(url)  # noqa: PTH100  # text in, text out
    protocol = url.split("://", 1)[0]
    if protocol in ("file", "local"):
        return LocalFileSystem(), str(LocalFileSystem._strip_protocol(url))
    if protocol in ("memory", "http", "https"):
        options = {}
    try:
        if protocol in ("http", "https"):  # fsspec would take the "::" of an IPv6 host for its own
            return fsspec.filesystem(protocol), url
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ValueError as error:
        raise StorageError(f"{url}: {error}; is the protocol spelt right?") from error
    except ImportError as error:
        raise StorageError(f"{url}: {error} (see the extras s3, gcs and azure)") from error
    except TypeError as error:
        raise StorageError(f"{url}: storage_options do not fit {protocol}: {error}") from error
    return fs, path


def _create_local(full: str, data: bytes) -> None:
    """Raises FileExistsError where the name is taken."""
    target = Path(full)
    temporary = _write_temporary(target, data)
    try:
        os.link(temporary, target)
    except FileExistsError:
        if target.stat().st_size:
            raise
        temporary.replace(target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if target.exists() and target.stat().st_size:
            raise FileExistsError(full) from error
        temporary.rename(target)
        return
    finally:
        temporary.unlink(missing_ok=True)


def _replace_local(full: str, data: bytes) -> None:
    target = Path(full)
    temporary = _write_temporary(target, data)
    try:
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _write_temporary(target: Path, data: bytes) -> Path:
    """The data, safely on disk, in a hidden file beside its target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary

"""Requests to a store: tried again where that can help, counted, and their errors understood.

This is the only loop that tries a request again, see `clients`. It stands around requests and
never around work. Every client library has a tree of errors of its own; this file knows them, so
that no other must.
"""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import fsspec
import stamina
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from fpe_core import ImageTooLargeError
from pipeline.errors import RowError, StorageError

STORE_ATTEMPTS = 8
"""Tries of one request to an object store: some 25 s of trouble are ridden out."""
WEB_ATTEMPTS = 4
"""Tries of one request to the web, where servers come and go and one row hangs on it: some 3 s."""
_WAIT_FIRST_S = 0.2
_WAIT_MOST_S = 10.0
_WAIT_JITTER_S = 1.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class RequestCounts:
    """What was asked of stores, local folders included.

    `requests` are calls of a client, each once however often it was tried; one can be two messages
    on the wire. `retries` are the further tries; the local disk has none. Bytes are those of whole
    files that were read or written; what is read piece by piece (`Folder.open_read`: manifests,
    work lists) is in none of the numbers but `retries`.
    """

    requests: int = 0
    retries: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: RequestCounts) -> RequestCounts:
        return RequestCounts(
            self.requests + other.requests,
            self.retries + other.retries,
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )

    def __sub__(self, other: RequestCounts) -> RequestCounts:
        return RequestCounts(
            self.requests - other.requests,
            self.retries - other.retries,
            self.bytes_read - other.bytes_read,
            self.bytes_written - other.bytes_written,
        )


class _Meter:
    """A sum that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum = RequestCounts()

    def add(self, counts: RequestCounts) -> None:
        with self._lock:
            self._sum += counts

    def read(self) -> RequestCounts:
        with self._lock:
            return self._sum


_METER = _Meter()  # of the process, as its threads share clients


def request_counts() -> RequestCounts:
    """What this process asked of stores so far. Subtract an earlier answer for what came since."""
    return _METER.read()


def count_bytes(*, read: int = 0, written: int = 0) -> None:
    """Adds the bytes of a file that went through a request."""
    _METER.add(RequestCounts(bytes_read=read, bytes_written=written))


def with_retries(
    fs: fsspec.AbstractFileSystem, request: Callable[[], _T], *, is_counted: bool = True
) -> _T:
    """What a request gives, tried again with growing pauses while its failure may be passing.

    Counts its retries, and itself if `is_counted`. Raises the error of the last try.
    """
    _METER.add(RequestCounts(requests=int(is_counted)))
    if isinstance(fs, LocalFileSystem | MemoryFileSystem):
        return request()
    for attempt in stamina.retry_context(
        on=_is_transient,
        attempts=WEB_ATTEMPTS if "http" in fs.protocol else STORE_ATTEMPTS,
        timeout=None,  # each try has its own, and one that used it up is tried again as well
        wait_initial=_WAIT_FIRST_S,
        wait_max=_WAIT_MOST_S,
        wait_jitter=_WAIT_JITTER_S,
    ):
        if attempt.num > 1:
            _METER.add(RequestCounts(retries=1))
        with attempt:
            return request()
    raise AssertionError("unreachable: the last attempt returns or raises")


class RetryingFile(io.RawIOBase):
    """A file, open for reading, of which every single read goes through `ask`, which may repeat it.

    The file must be able to seek.
    """

    def __init__(self, file: BinaryIO, ask: Callable[[Callable[[], bytes]], bytes]) -> None:
        super().__init__()
        self._file = file
        self._ask = ask

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        start = self._file.tell()

        def read() -> bytes:
            self._file.seek(start)
            return self._file.read(len(buffer))

        data = self._ask(read)
        buffer[: len(data)] = data
        return len(data)


_PERMANENT = (
    FileExistsError,
    FileNotFoundError,
    ImageTooLargeError,
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    PermissionError,
    RowError,
    StorageError,
    TypeError,
    ValueError,
)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")
_BAD_SETTINGS = ("ConfigParseError", "NoRegionError", "ProfileNotFound")
_PASSING_CODES = ("BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch")
"""S3's words for a request that was damaged or cut short on its way; the status is 400."""
_PASSING_STATUSES = (408, 409, 425, 429)
"""Besides those from 500 on. 409: another request on the same name was under way."""
_LASTING_STATUSES = (501, 505, 507)
"""Not implemented, not this version, no space left."""


def _is_transient(error: Exception) -> bool:
    answer = _answer(error)
    if answer.code in _PASSING_CODES:
        return True
    if isinstance(error, _PERMANENT) or is_forbidden(error) or means_taken(error):
        return False
    if type(error).__name__ in _BAD_SETTINGS:
        return False
    if answer.status is not None and answer.status >= 400:
        passing = answer.status in _PASSING_STATUSES or answer.status >= 500
        return passing and answer.status not in _LASTING_STATUSES
    return getattr(error, "errno", None) not in (errno.EINVAL, errno.ENOSPC, errno.EDQUOT)


def is_forbidden(error: BaseException) -> bool:
    """Whether the store knows us not, or says no."""
    if isinstance(error, PermissionError) or _answer(error).status in (401, 403):
        return True
    return type(error).__name__ in _NO_CREDENTIALS


def means_taken(error: BaseException | None) -> bool:
    """Whether a conditional put was refused because the name is taken."""
    if error is None:
        return False
    taken = isinstance(error, FileExistsError) or _own_answer(error).status == 412
    return taken or means_taken(error.__cause__)


@dataclass(frozen=True)
class _Answer:
    """What a store answered with, as far as its client's error tells: HTTP status, S3's code."""

    status: int | None = None
    code: str = ""


def _answer(error: BaseException) -> _Answer:
    """That of an error, or of its cause: s3fs makes an OSError of botocore's."""
    own = _own_answer(error)
    return _own_answer(error.__cause__) if own == _Answer() and error.__cause__ else own


def _own_answer(error: BaseException) -> _Answer:
    response, code = getattr(error, "response", None), ""
    if isinstance(response, Mapping):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = str(response.get("Error", {}).get("Code", ""))
    elif type(error).__name__ == "HttpError":  # gcsfs
        found = getattr(error, "code", None)
    else:  # aiohttp
        found = getattr(error, "status", None)
    return _Answer(int(found) if str(found).isdigit() else None, code)


def explain(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return str(error) if "bucket does not exist" in str(error) else "not found"
    if isinstance(error, IsADirectoryError):
        return "is not a file"
    if isinstance(error, PermissionError) and error.strerror:
        return error.strerror  # the local disk's; what stores raise has no errno
    if is_forbidden(error):
        return f"not allowed with these credentials ({str(error) or type(error).__name__})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

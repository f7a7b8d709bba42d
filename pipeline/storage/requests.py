"""Requests to a store: retries them if that can help, counts them, and interprets their errors.

This is the only loop that retries requests, see `clients`. It repeats single requests, never larger
work. Every client library has its own exceptions; only this file knows them.
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
"""Attempts of one request to an object store: enough to survive an outage of some 25 s."""
WEB_ATTEMPTS = 4
"""Attempts of one request to a web server, over some 3 s: few, since only one row depends on it."""
_WAIT_FIRST_S = 0.2
_WAIT_MOST_S = 10.0
_WAIT_JITTER_S = 1.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class RequestCounts:
    """Counts of requests to stores, including local folders.

    `requests` are calls of a client, not counting retries; one call can be two messages on the
    wire. `retries` are the retries of these calls; the local disk has none. Bytes are those of
    whole files that were read or written. Reads of pieces of a file (`Folder.open_read`: manifests,
    work lists) are not counted, except their retries.
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


_METER = _Meter()  # one per process, since its threads share clients


def request_counts() -> RequestCounts:
    """The requests of this process so far. Subtract an earlier value for those since then."""
    return _METER.read()


def count_bytes(*, read: int = 0, written: int = 0) -> None:
    """Counts the bytes of a file that was read or written."""
    _METER.add(RequestCounts(bytes_read=read, bytes_written=written))


def with_retries(
    fs: fsspec.AbstractFileSystem, request: Callable[[], _T], *, is_counted: bool = True
) -> _T:
    """Runs a request, retries it with growing pauses if its error may be transient.

    Counts the retries, and the request itself if `is_counted`. Raises the error of the last
    attempt.
    """
    _METER.add(RequestCounts(requests=int(is_counted)))
    if isinstance(fs, LocalFileSystem | MemoryFileSystem):
        return request()
    for attempt in stamina.retry_context(
        on=_is_transient,
        attempts=WEB_ATTEMPTS if "http" in fs.protocol else STORE_ATTEMPTS,
        timeout=None,  # each attempt has its own time limit; a timeout is retried as well
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
    """A file, open for reading, of which every read goes through `ask`, which may retry it.

    The file must support seeking.
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
"""S3's error codes for a request that was damaged or cut short in transit; the status is 400."""
_PASSING_STATUSES = (408, 409, 425, 429)
"""In addition to those from 500 on. 409: another request for the same name was in progress."""
_LASTING_STATUSES = (501, 505, 507)
"""Not implemented, HTTP version not supported, no space left."""


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
    """Whether the store rejected the credentials, or does not allow the request."""
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
    """A store's answer, as far as its client's error contains it: HTTP status, S3's error code."""

    status: int | None = None
    code: str = ""


def _answer(error: BaseException) -> _Answer:
    """The answer in an error, or in its cause: s3fs converts botocore's errors to OSErrors."""
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
    """A short text for a client's error."""
    if isinstance(error, FileNotFoundError):
        return str(error) if "bucket does not exist" in str(error) else "not found"
    if isinstance(error, IsADirectoryError):
        return "is not a file"
    if isinstance(error, PermissionError) and error.strerror:
        return error.strerror  # from the local disk; those of stores have no errno
    if is_forbidden(error):
        return f"not allowed with these credentials ({str(error) or type(error).__name__})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

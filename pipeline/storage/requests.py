"""Requests to a store: retries them if that can help, counts them, and interprets their errors.

This is the only loop that retries requests, see `clients`. It repeats single requests, never larger
work. Every client library has its own exceptions; only this file knows them.
"""

from __future__ import annotations

import errno
import io
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
THROTTLE_WAIT_MOST_S = 120.0
"""The longest that a request waits in all, because the server says so (Retry-After)."""
_WAIT_FIRST_S = 0.2
_WAIT_MOST_S = 10.0
_WAIT_JITTER_S = 1.0
_T = TypeVar("_T")
_sleep = time.sleep


@dataclass(frozen=True)
class RequestCounts:
    """Counts of requests to stores, including local folders.

    `requests` are calls of a client, not counting retries; one call can be two messages on the
    wire. `retries` are the retries of these calls; the local disk has none. Bytes are those of
    whole files that were read or written. Reads of pieces of a file (`Folder.open_read` and
    `open_spans`: work lists, manifests) are not counted, except their retries.
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

    A server that states how long to wait is asked again after that time, if all these pauses
    together take at most THROTTLE_WAIT_MOST_S. Counts the retries, and the request itself if
    `is_counted`. Raises the error of the last attempt.
    """
    _METER.add(RequestCounts(requests=int(is_counted)))
    if isinstance(fs, LocalFileSystem | MemoryFileSystem):
        return request()
    waited_s, least_s = 0.0, _WAIT_FIRST_S
    while True:
        try:
            return _with_backoff(fs, request)
        except Exception as error:
            asked_s = stated_pause_s(error)
            if asked_s is None:
                raise
            # A server that states 0 s again and again must not be asked without end.
            pause_s = max(asked_s, least_s)
            if waited_s + pause_s > THROTTLE_WAIT_MOST_S:
                raise
        _sleep(pause_s + random.uniform(0, _WAIT_JITTER_S))  # noqa: S311
        _METER.add(RequestCounts(retries=1))
        waited_s, least_s = waited_s + pause_s, least_s * 2


def _with_backoff(fs: fsspec.AbstractFileSystem, request: Callable[[], _T]) -> _T:
    """Runs a request, with retries of errors for which no pause is stated."""
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
_NO_CONDITIONS = re.compile(
    r"if-?none-?match|conditional|header .*(unsupported|not (supported|implemented))|"
    r"(unsupported|unknown|unrecognized|not (supported|implemented)).* header",
    re.IGNORECASE,
)
_THROTTLED_STATUSES = (429, 503)
_THROTTLED_CODES = (
    "BandwidthLimitExceeded",
    "QpsLimitExceeded",
    "RequestLimitExceeded",
    "RequestThrottled",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
)
"""What S3 and other stores call a request too many."""


def _is_transient(error: Exception) -> bool:
    answer = _answer(error)
    if stated_pause_s(error) is not None:
        return False  # `with_retries` waits for as long as the server says
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


def refuses_condition(error: BaseException) -> bool:
    """Whether a store answered that it does not know the condition of a conditional put.

    501 and NotImplemented are S3's words for that; servers also answer 400 and name the header.
    """
    answer = _answer(error)
    if answer.status == 501 or answer.code == "NotImplemented":
        return True
    return answer.status == 400 and bool(_NO_CONDITIONS.search(str(error)))


def is_throttled(error: BaseException) -> bool:
    """Whether the server refused the request because there are too many of them."""
    answer = _answer(error)
    is_stated = answer.status == 429 or answer.code in _THROTTLED_CODES
    return is_stated or stated_pause_s(error) is not None


def stated_pause_s(error: BaseException) -> float | None:
    """The seconds that a server asks to wait (RFC 9110, Retry-After: a number, or a date).

    None if it does not, if that cannot be read, or if the request failed for another reason.
    """
    answer = _answer(error)
    stated = answer.headers.get("retry-after", "").strip()
    if answer.status not in _THROTTLED_STATUSES or not stated:
        return None
    if stated.isdecimal():
        return float(stated[:9])
    try:
        until = parsedate_to_datetime(stated)
        now = parsedate_to_datetime(answer.headers["date"]) if "date" in answer.headers else None
    except ValueError:
        return None
    # The difference of two times of the server, whose clock may be wrong.
    pause = _in_utc(until) - (datetime.now(UTC) if now is None else _in_utc(now))
    return max(0.0, pause.total_seconds())


def _in_utc(time_: datetime) -> datetime:
    return time_ if time_.tzinfo else time_.replace(tzinfo=UTC)


def means_taken(error: BaseException | None) -> bool:
    """Whether a conditional put was refused because the name is taken."""
    if error is None:
        return False
    taken = isinstance(error, FileExistsError) or _own_answer(error).status == 412
    return taken or means_taken(error.__cause__)


@dataclass(frozen=True)
class _Answer:
    """A store's answer, as far as its client's error contains it: HTTP status, S3's error code,
    and the headers by their names in lower case."""

    status: int | None = None
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def _answer(error: BaseException) -> _Answer:
    """The answer in an error, or in its cause: s3fs converts botocore's errors to OSErrors."""
    own = _own_answer(error)
    return _own_answer(error.__cause__) if own == _Answer() and error.__cause__ else own


def _own_answer(error: BaseException) -> _Answer:
    response, code = getattr(error, "response", None), ""
    headers = getattr(error, "headers", None)
    if isinstance(response, Mapping):  # botocore
        metadata = response.get("ResponseMetadata", {})
        found, headers = metadata.get("HTTPStatusCode"), metadata.get("HTTPHeaders")
        code = str(response.get("Error", {}).get("Code", ""))
    elif type(error).__name__ == "HttpError":  # gcsfs
        found = getattr(error, "code", None)
    else:  # aiohttp; azure-core has a status_code, and the headers in its response
        found = getattr(error, "status", None) or getattr(error, "status_code", None)
        headers = headers or getattr(response, "headers", None)
    named = {str(key).lower(): str(value) for key, value in dict(headers or {}).items()}
    return _Answer(int(found) if str(found).isdigit() else None, code, named)


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

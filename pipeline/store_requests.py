"""Requests to a store: tried again where that can help, and their errors understood.

Every client library has a tree of errors of its own; this file knows them, so that no other must.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import TypeVar

import fsspec
import stamina
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from fpe_core import ImageTooLargeError
from pipeline.errors import RowError, StorageError

REQUEST_ATTEMPTS = 4
_T = TypeVar("_T")


def with_retries(fs: fsspec.AbstractFileSystem, request: Callable[[], _T]) -> _T:
    if isinstance(fs, LocalFileSystem | MemoryFileSystem):
        return request()
    for attempt in stamina.retry_context(on=_is_transient, attempts=REQUEST_ATTEMPTS):
        with attempt:
            return request()
    raise AssertionError("unreachable: the last attempt returns or raises")


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


def _is_transient(error: Exception) -> bool:
    if isinstance(error, _PERMANENT) or is_forbidden(error) or means_taken(error):
        return False
    return getattr(error, "errno", None) not in (errno.EINVAL, errno.ENOSPC, errno.EDQUOT)


def is_forbidden(error: BaseException) -> bool:
    """Whether the store knows us not, or says no."""
    if isinstance(error, PermissionError) or _http_status(error) in (401, 403):
        return True
    return type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}


def means_taken(error: BaseException | None) -> bool:
    """Whether a conditional put was refused because the name is taken."""
    if error is None:
        return False
    taken = isinstance(error, FileExistsError) or _http_status(error) == 412
    return taken or means_taken(error.__cause__)


def _http_status(error: BaseException) -> int | None:
    """The status that a store answered with, where its client's error tells."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore, which s3fs keeps as the cause
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif type(error).__name__ == "HttpError":  # gcsfs
        found = getattr(error, "code", None)
    else:  # aiohttp
        found = getattr(error, "status", None)
    return int(found) if str(found).isdigit() else None


def explain(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return str(error) if "bucket does not exist" in str(error) else "not found"
    if isinstance(error, IsADirectoryError):
        return "is not a file"
    if is_forbidden(error):
        return f"not allowed with these credentials ({str(error) or type(error).__name__})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__

"""Creates a file on a store that is not a local disk, if its name is free. See `folder`.

A conditional put (`If-None-Match: *`) does it where the store obeys. Some S3 servers ignore the
condition. Others refuse it: then the file is put after another look whether the name is free, and
the store is remembered, so that it is asked and a warning is logged once per process. A file of
zero bytes, which a failed write left, is replaced under a condition too (`If-Match`).
"""

from __future__ import annotations

import logging
import posixpath
import threading
from collections.abc import Callable
from typing import Any

import fsspec

from pipeline.errors import AlreadyExistsError, StorageError
from pipeline.redact import redact_url
from pipeline.storage.clients import content_type_options, is_s3
from pipeline.storage.requests import explain, means_taken, refuses_condition

_log = logging.getLogger(__name__)
_WITHOUT_CONDITIONS: set[tuple[str, ...]] = set()
"""The stores (protocol, endpoint, bucket) that refused conditional puts to this process."""
_REPLACING = threading.Lock()


def put(fs: fsspec.AbstractFileSystem, full: str, data: bytes, **mode: Any) -> None:
    """Writes a whole file, with the content type of its ending."""
    fs.pipe_file(full, data, **mode, **content_type_options(fs, full))


def create_remote(
    fs: fsspec.AbstractFileSystem,
    url: str,
    full: str,
    data: bytes,
    ask: Callable[[Callable[[], Any]], Any],
) -> None:
    """Creates the file `full`, whose name was just seen to be free; `url` is its name in messages.

    `ask` runs a request, with retries; its errors are StorageErrors. Raises AlreadyExistsError if
    the name is taken by someone else, and StorageError.
    """
    tries = 0

    def create() -> None:
        nonlocal tries
        tries += 1
        if tries > 1 and _holds(fs, full, data):
            return  # an earlier attempt succeeded, and only its answer was lost
        _put_new(fs, url, full, data)

    try:
        ask(create)
    except StorageError as error:
        # The name may be taken by our own write: an attempt that timed out can succeed later,
        # and aiohttp sends a request again if a kept-alive connection breaks.
        if not means_taken(error.__cause__):
            raise
        try:
            if ask(lambda: _replace_empty(fs, full, data)):
                return
        except StorageError as lost:
            if not means_taken(lost.__cause__):
                raise
        if not ask(lambda: _holds(fs, full, data)):
            raise AlreadyExistsError(f"{url} was written by someone else meanwhile") from error


def _put_new(fs: fsspec.AbstractFileSystem, url: str, full: str, data: bytes) -> None:
    """One attempt to create a file: exclusively, unless the store refuses that."""
    store = (str(fs.protocol), str(getattr(fs, "endpoint_url", "")), full.split("/", 1)[0])
    refusal = ""
    if store not in _WITHOUT_CONDITIONS:
        try:
            put(fs, full, data, mode="create")
            return
        except Exception as error:  # every client has its own exceptions
            if not refuses_condition(error):
                raise
            refusal = explain(error)
    if _is_there(fs, full):
        raise FileExistsError(full)
    put(fs, full, data)
    if refusal and store not in _WITHOUT_CONDITIONS:
        _WITHOUT_CONDITIONS.add(store)
        _log.warning(
            "the store of %s refuses conditional puts (%s). Files are created after a look whether "
            "their name is free: what was written stays safe, but two runs that take this folder "
            "at the same instant are not kept apart, so start only one at a time",
            redact_url(url),
            refusal,
        )


def _replace_empty(fs: fsspec.AbstractFileSystem, full: str, data: bytes) -> bool:
    """Writes over a file of zero bytes; False if it is not empty, or not there.

    S3 does it under the condition that it still is that file (`If-Match`), so of several writers
    one wins; the others get an error that `means_taken`. Within this process a lock does the same.
    """
    with _REPLACING:
        fs.invalidate_cache(posixpath.dirname(full))
        try:
            info = fs.info(full)
        except FileNotFoundError:
            return False
        if info["size"] != 0:
            return False
        condition = {"IfMatch": info["ETag"]} if is_s3(fs) and info.get("ETag") else {}
        try:
            # One message whatever the size: s3fs passes no condition on to multipart uploads.
            put(fs, full, data, **condition, **({"chunksize": len(data) + 1} if condition else {}))
        except Exception as error:  # every client has its own exceptions
            if not condition or not refuses_condition(error):
                raise
            put(fs, full, data)
        return True


def _is_there(fs: fsspec.AbstractFileSystem, full: str) -> bool:
    """Whether there is a file that is not empty."""
    fs.invalidate_cache(posixpath.dirname(full))
    try:
        return bool(fs.info(full)["size"] != 0)
    except FileNotFoundError:
        return False


def _holds(fs: fsspec.AbstractFileSystem, full: str, data: bytes) -> bool:
    try:
        return bool(fs.cat_file(full) == data)
    except FileNotFoundError:
        return False

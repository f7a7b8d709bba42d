"""Fetches the bytes of one source, if the job allows its place and its size.

A store is asked for the size first. A download from the web is stopped at the limit, because the
size that a server reports may be wrong. Redirects are followed here, after a check of each with the
job's rules. Time limits are those of `clients`, retries those of `requests`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from fpe_core import ImageTooLargeError
from pipeline.errors import (
    RowError,
    SourceForbiddenError,
    SourceMissingError,
    SourceThrottledError,
)
from pipeline.redact import redact_url
from pipeline.storage.allowed_sources import SourceRules
from pipeline.storage.clients import filesystem_of
from pipeline.storage.folder import resolve_uri
from pipeline.storage.requests import (
    THROTTLE_WAIT_MOST_S,
    count_bytes,
    explain,
    is_forbidden,
    is_throttled,
    stated_pause_s,
    with_retries,
)
from pipeline.storage.web import redirect_target

if TYPE_CHECKING:
    from fsspec.implementations.http import HTTPFileSystem

MAX_BYTES = 256_000_000
_MOST_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 1 << 16


def read_uri(
    uri: str,
    base: str = "",
    options: Mapping[str, Any] | None = None,
    *,
    rules: SourceRules | None = None,
    max_bytes: int = MAX_BYTES,
) -> bytes:
    """The bytes of a source; a relative URI is relative to the folder `base`.

    Raises SourceMissingError (does not exist, is a folder, has an unknown protocol, or no attempt
    succeeded), SourceForbiddenError (by the store or by `rules`), SourceThrottledError (too many
    requests, also after a while) and ImageTooLargeError (more than `max_bytes`; not much more than
    that is read).
    """
    rules = rules or SourceRules()
    url = _with_lower_scheme(resolve_uri(uri, base))
    try:
        data = _read(url, options or {}, rules, max_bytes)
        count_bytes(read=len(data))
        return data
    except (RowError, ImageTooLargeError):
        raise
    except Exception as error:  # every client has its own exceptions
        message = f"{redact_url(url)}: {explain(error)}"
        if is_throttled(error):
            raise SourceThrottledError(f"{message}{_told_to_wait(error)}") from error
        if is_forbidden(error):
            raise SourceForbiddenError(message) from error
        raise SourceMissingError(message) from error


def _told_to_wait(error: Exception) -> str:
    pause_s = stated_pause_s(error)
    if pause_s is None:
        return " (too many requests)"
    return (
        f" and asks to wait {pause_s:.0f} s; a source is waited for {THROTTLE_WAIT_MOST_S:.0f} s "
        "at most"
    )


def _read(url: str, options: Mapping[str, Any], rules: SourceRules, max_bytes: int) -> bytes:
    if "://" in url and not url.startswith(("file://", "local://")):
        rules.check_url(url)  # before a client is made: some send requests then
    fs, path = filesystem_of(url, options)
    if isinstance(fs, LocalFileSystem):
        return with_retries(fs, lambda: _read_local(Path(rules.real_path(path)), max_bytes))
    from fsspec.implementations.http import HTTPFileSystem  # loads aiohttp: not for local files

    if isinstance(fs, HTTPFileSystem):
        return with_retries(fs, lambda: _read_http(fs, path, rules, max_bytes))
    return with_retries(fs, lambda: _read_store(fs, path, max_bytes))


def _read_local(path: Path, max_bytes: int) -> bytes:
    if path.exists() and not path.is_file():  # a pipe or device could be read forever
        raise IsADirectoryError(path)
    with path.open("rb") as file:
        check_size(os.fstat(file.fileno()).st_size, max_bytes)
        return _checked(file.read(max_bytes + 1), max_bytes)


def _read_store(fs: fsspec.AbstractFileSystem, path: str, max_bytes: int) -> bytes:
    info = fs.info(path)
    if info.get("type") == "directory":
        raise IsADirectoryError(path)
    if info.get("size") is None:
        with fs.open(path, "rb") as file:
            return _checked(file.read(max_bytes + 1), max_bytes)
    check_size(info["size"], max_bytes)
    return _checked(fs.cat_file(path), max_bytes)


class _WebError(OSError):
    """A web server's answer that is not a file. Does not show the URL, which may hold a secret."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


def _read_http(fs: HTTPFileSystem, url: str, rules: SourceRules, max_bytes: int) -> bytes:
    data: bytes = sync(fs.loop, _read_web, fs, url, rules, max_bytes)
    return data


async def _read_web(fs: HTTPFileSystem, url: str, rules: SourceRules, max_bytes: int) -> bytes:
    session = await fs.set_session()
    for _ in range(_MOST_REDIRECTS + 1):
        async with session.get(url, allow_redirects=False, **fs.kwargs) as answer:
            if answer.status in _REDIRECTS and "Location" in answer.headers:
                url = _redirected(url, answer.headers["Location"], rules)
                continue
            if answer.status == 404:
                raise FileNotFoundError(url)
            if answer.status >= 400:
                raise _WebError(
                    answer.status,
                    f"the server answered {answer.status} {answer.reason}",
                    answer.headers,
                )
            try:
                check_size(answer.content_length or 0, max_bytes)
                data = bytearray()
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    data += chunk
                    check_size(len(data), max_bytes)
            except ImageTooLargeError:
                answer.close()  # otherwise the rest would be read to reuse the connection
                raise
            return bytes(data)
    raise ValueError(f"more than {_MOST_REDIRECTS} redirects")


def _redirected(url: str, location: str, rules: SourceRules) -> str:
    """The target of a redirect. Raises SourceForbiddenError if the rules do not allow it."""
    target = _with_lower_scheme(redirect_target(url, location))
    if not target.startswith(("http://", "https://")):
        raise SourceForbiddenError(f"{redact_url(url)}: redirects to a URL that is not http(s)")
    refusal = rules.refusal(target)
    if refusal:
        raise SourceForbiddenError(
            f"{redact_url(url)}: redirects to {redact_url(target)}, and {refusal}"
        )
    return target


def _with_lower_scheme(url: str) -> str:
    """The URL with a lower-case scheme: schemes ignore case (RFC 3986, 3.1), fsspec does not."""
    return re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*(?=://)", lambda found: found[0].lower(), url)


def check_size(size: int, max_bytes: int) -> None:
    """Raises ImageTooLargeError if `size` is over `max_bytes`."""
    if size > max_bytes:
        raise ImageTooLargeError(
            f"the image has {size} bytes or more, over the allowed {max_bytes}; raise "
            "images.max_bytes if it is genuine"
        )


def _checked(data: bytes, max_bytes: int) -> bytes:
    check_size(len(data), max_bytes)
    return data

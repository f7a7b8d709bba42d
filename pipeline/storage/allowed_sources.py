"""Where sources may be: the rules of `images.allowed_sources`.

A manifest often comes from somebody else, and a worker reads the files that it names with the
worker's own permissions. A rule is a folder or a file: an absolute local path, or the beginning of
a URL (`s3://bucket`, `https://host/images`, `https://`). It applies to whole names: `/data/a` does
not allow `/data/ab`.

The check is on the file that will be opened. Local paths are resolved, including symbolic links,
those of the rule as well as those of the source. A URL that a client or server could interpret
differently (`..` in any encoding, control characters, `::`) is refused. `fetch` checks again before
it follows a redirect. Some file systems are refused in every job, see `_LAYERS`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import SourceForbiddenError
from pipeline.redact import redact_url
from pipeline.storage.file_uris import path_of_file_uri, with_slashes

_KEY = "images.allowed_sources"
_LAYERS = frozenset({"simplecache", "filecache", "blockcache", "cached", "reference"})
"""fsspec's layers that keep copies outside the run folder, or get the paths to read from a file."""
_LOCAL = ("file", "local")
_WEB = ("http://", "https://")
_SAME_STORE = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MOST_ENCODINGS = 4
_Place: TypeAlias = tuple[str, ...]
"""Scheme, host or bucket, then the names of the path."""


@dataclass(frozen=True)
class SourceRules:
    """The rules of a job. None: sources may be anywhere; (): only in the manifest itself."""

    allowed: tuple[str, ...] | None = None

    def refusal(self, url: str) -> str:
        """Why the source at an absolute path or URL is refused; "" if it is not.

        A quick check for planning. For a local path only the folder is resolved, and each folder
        once; if the file itself is a symbolic link, only `real_path` follows it.
        """
        path = local_path(url)
        if path is None:
            return self._refusal_of_url(url)
        if self.allowed is None:
            return ""
        if "\0" in path:
            return "the path holds a NUL character"
        folder, _, name = path.rpartition("/")
        return self._refusal_of_path(path, f"{_real_folder(folder or '/').rstrip('/')}/{name}")

    def check_url(self, url: str) -> None:
        """Raises SourceForbiddenError if a URL of a file that is not local is not allowed."""
        refusal = self._refusal_of_url(url)
        if refusal:
            raise SourceForbiddenError(f"{redact_url(url)}: {refusal}")

    def real_path(self, path: str) -> str:
        """The file that an absolute local path resolves to. It was checked, so open this one.

        Raises SourceForbiddenError. Without rules the path is returned unchanged.
        """
        if self.allowed is None:
            return path
        real = os.path.realpath(path)
        refusal = self._refusal_of_path(path, real)
        if refusal:
            raise SourceForbiddenError(f"{path}: {refusal}")
        return real

    def _refusal_of_url(self, url: str) -> str:
        for layer in _protocols(url):
            if layer in _LAYERS:
                return f"{layer} is a layer over other files; name the file itself"
        if self.allowed is None:
            return ""
        try:
            place = _place_of(url)
        except ValueError as error:
            return f"{error}, and {_KEY} is set"
        is_allowed = any(place[: len(rule)] == rule for rule in self._places)
        return "" if is_allowed else self._allows_only

    def _refusal_of_path(self, path: str, real: str) -> str:
        for folder in self._folders:
            if real == folder or real.startswith(folder.rstrip("/") + "/"):
                return ""
        leads = "" if real == path else f"leads to {real}, and "
        return leads + self._allows_only

    @cached_property
    def _folders(self) -> tuple[str, ...]:
        paths = (local_path(rule) for rule in self.allowed or ())
        return tuple(os.path.realpath(path) for path in paths if path is not None)

    @cached_property
    def _places(self) -> tuple[_Place, ...]:
        rules = self.allowed or ()
        return tuple(_place_of_rule(rule) for rule in rules if local_path(rule) is None)

    @cached_property
    def _allows_only(self) -> str:
        return f"{_KEY} allows only {', '.join(self.allowed or ()) or 'images in the manifest'}"


def check_rule(rule: str) -> None:
    """Raises ValueError, with what to write instead, if the text is not a valid rule."""
    rule = with_slashes(rule)
    if "://" not in rule and not rule.startswith("/"):
        raise ValueError(
            f"{rule!r} is relative, and a rule has to mean the same on every machine: write an "
            "absolute path, or a URL such as s3://bucket/images"
        )
    if local_path(rule) is None:
        try:
            _place_of_rule(rule)
        except ValueError as error:
            raise ValueError(f"{redact_url(rule)!r} cannot be a rule: {error}") from error


def local_path(url: str) -> str | None:
    """The absolute path that a URL or path names on the local disk; None for any other URL."""
    path = path_of_file_uri(url)
    if path is not None:
        return path
    if "://" not in url:
        return os.path.abspath(url)  # noqa: PTH100  # text in, text out
    if url.split("://", 1)[0] not in _LOCAL:
        return None
    return str(LocalFileSystem._strip_protocol(url))


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _protocols(url: str) -> list[str]:
    """The protocols of a URL; more than one if it chains them with `::`."""
    if url.lower().startswith(_WEB):
        return [url.split("://")[0].lower()]
    return [part.split("://")[0].lower() for part in url.split("::")]


def _place_of_rule(rule: str) -> _Place:
    scheme, _, rest = rule.partition("://")
    if rule.lower().startswith(_WEB) and re.search("[?#]", rest):
        raise ValueError("it has a query or fragment")
    return _place_of(f"{scheme}://{rest.rstrip('/')}")


def _place_of(url: str) -> _Place:
    """The parts of a URL. Raises ValueError if it can be interpreted in more than one way."""
    if re.search(r"[\x00-\x1f\x7f]", url):
        raise ValueError("the URL holds control characters")
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in _DEFAULT_PORTS:
        return (scheme, *_web_names(scheme, rest))
    if "::" in url:
        raise ValueError("the URL chains file systems with ::")
    names = rest.split("/") if rest else []
    _refuse_steps(names[1:])
    return (_SAME_STORE.get(scheme, scheme), *names)


def _web_names(scheme: str, rest: str) -> list[str]:
    """Host (with its port unless it is the default) and the decoded names of the path."""
    if not rest:
        return []
    if "\\" in rest.split("?")[0]:
        raise ValueError("the URL holds a backslash")
    parts = urlsplit(f"{scheme}://{rest}")
    port = parts.port or _DEFAULT_PORTS[scheme]
    host = (parts.hostname or "") + (f":{port}" if port != _DEFAULT_PORTS[scheme] else "")
    names = parts.path.split("/")[1:]
    _refuse_steps(names)
    return [host, *map(unquote, names)]


def _refuse_steps(names: list[str]) -> None:
    """Raises ValueError for `.` and `..` in a path, however often they are encoded."""
    path = "/".join(names)
    for _ in range(_MOST_ENCODINGS):
        if {".", ".."} & set(re.split(r"[/\\]", path)):
            raise ValueError("the URL's path holds . or ..")
        path, encoded = unquote(path), path
        if path == encoded:
            return
    raise ValueError("the URL's path is percent-encoded again and again")

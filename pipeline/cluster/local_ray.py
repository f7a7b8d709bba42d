"""Where a Ray that a run starts on this machine puts its files.

sockets, logs, spilled objects   RAY_TMPDIR, else TMPDIR, else /tmp; a Unix socket has a short path
the token of its processes       ~/.ray/auth_token, else it stays in the environment
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ResourceError

_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of a Unix socket's path: sun_path of unix(7), without its final null."""
_FALLBACKS = ("/tmp", "/var/tmp")  # noqa: S108 - Ray makes a folder of its own there
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_log = logging.getLogger(__name__)


@contextmanager
def local_files() -> Iterator[None]:
    """A context whose environment lets a Ray start here that can write all its files.

    Raises ResourceError if no folder can hold Ray's sockets.
    """
    found = {**_temporary_folder(), **_token()}
    before = {name: os.environ.get(name) for name in found}
    os.environ.update(found)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def longest_folder() -> int:
    """How many bytes the path of a temporary folder may have, so that Ray's sockets fit below."""
    session = f"session_0000-00-00_00-00-00_000000_{os.getpid()}"
    return _LONGEST_SOCKET - len(f"/ray/{session}/sockets/plasma_store")


def _temporary_folder() -> Mapping[str, str]:
    """RAY_TMPDIR for a folder that serves, if Ray would not take one by itself."""
    own = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _FALLBACKS[0]
    reason = _unfit(own)
    if not reason:
        return {}
    reasons = [f"{own} {reason}"]
    if not os.environ.get("RAY_TMPDIR"):  # a folder that was named for Ray is not replaced
        for folder in _FALLBACKS:
            if folder != own and not (other := _unfit(folder)):
                _log.warning(
                    "Ray's files go to %s/ray, because %s %s; RAY_TMPDIR names another folder",
                    folder,
                    own,
                    reason,
                )
                return {"RAY_TMPDIR": folder}
            if folder != own:
                reasons.append(f"{folder} {other}")
    raise ResourceError(
        f"Ray has no folder for its sockets and logs: {'; '.join(reasons)}. Set RAY_TMPDIR to a "
        f"folder that this user may write to, with a path of at most {longest_folder()} bytes. "
        "Nothing was started."
    )


def _unfit(folder: str) -> str:
    """Why Ray cannot use the folder; "" if it can."""
    length = len(os.fsencode(folder.rstrip("/")))
    if length > longest_folder():
        return f"has {length} bytes, and the path of a Unix socket is limited"
    return "" if _is_writable(Path(folder) / "ray") else "cannot be written to"


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in the folder, or the folder itself if it does not exist yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _token() -> Mapping[str, str]:
    """A token for this Ray alone, if Ray has none and could not write one into HOME."""
    if any(name in os.environ for name in _TOKEN_VARIABLES):
        return {}
    try:
        folder = Path.home() / ".ray"
        if (folder / "auth_token").is_file():
            return {}
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return {}
    except (OSError, RuntimeError):  # a read-only HOME, or none at all
        pass
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}

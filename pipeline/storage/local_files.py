"""Creates and replaces files on a local disk: whole, exclusively, and so that power may fail.

A file that only its data were synced of can be gone after a power failure: its name is an entry of
its folder, which is synced on its own (fsync(2)). `folder` says what is guaranteed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)
"""What file systems answer that cannot sync a folder, or let no one open it."""


def create_local(full: str, data: bytes, *, is_synced: bool = True) -> None:
    """Creates a file. Raises FileExistsError if there is one that is not empty, and OSError.

    `is_synced`: False: the folder's entry of the file is left to `sync_folder`, which takes as long
    for many files as for one.
    """
    target = Path(full)
    if target.exists() and target.stat().st_size:
        raise FileExistsError(full)  # before the data is written in vain, perhaps to a full disk
    with _temporary_file(target, data) as temporary:
        try:
            os.link(temporary, target)
        except FileExistsError:
            _replace_empty(temporary, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if target.exists() and target.stat().st_size:
                raise FileExistsError(full) from error
            temporary.rename(target)
    if is_synced:
        sync_folder(target.parent)


def replace_local(full: str, data: bytes) -> None:
    """Writes a file, over an earlier one if there is one. Raises OSError."""
    target = Path(full)
    with _temporary_file(target, data) as temporary:
        temporary.replace(target)
    sync_folder(target.parent)


def _replace_empty(temporary: Path, target: Path) -> None:
    """Puts a file in the place of an empty one. Raises FileExistsError if it is not empty.

    Whoever holds the lock on the empty file replaces it; the next one to hold that lock finds that
    the name means another file by then.
    """
    try:
        file = target.open("r+b")  # NFS locks files that are open for writing
    except FileNotFoundError:  # removed since
        os.link(temporary, target)
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, or the process dies
        except OSError as error:
            raise OSError(
                error.errno, f"a file of zero bytes is there, remove it ({error.strerror})"
            ) from error
        found, locked = target.stat(), os.fstat(file.fileno())
        if found.st_size or (found.st_dev, found.st_ino) != (locked.st_dev, locked.st_ino):
            raise FileExistsError(target)
        temporary.replace(target)


@contextmanager
def _temporary_file(target: Path, data: bytes) -> Iterator[Path]:
    """A hidden file next to a target, with its content on the disk; removed afterwards."""
    _make_folder(target.parent)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, and syncs the entries of the new ones."""
    missing = [folder] if not folder.exists() else []
    while missing and not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Syncs the entries of a folder, if its file system can."""
    with contextlib.suppress(FileNotFoundError):  # removed since, with all its files
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
            return
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
        finally:
            os.close(handle)

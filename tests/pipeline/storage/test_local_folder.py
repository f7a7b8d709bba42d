"""What is special about folders on local disk."""

from __future__ import annotations

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from pipeline.errors import (
    AlreadyExistsError,
    SourceForbiddenError,
    SourceMissingError,
    StorageError,
)
from pipeline.storage.fetch import read_uri
from pipeline.storage.folder import Folder, absolute_url


def test_local_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder.open("out/run/")
    assert folder.url == str(tmp_path / "out/run")
    assert Folder.open(f"file://{tmp_path}/out/run") == folder
    assert folder.url_of("x/y") == f"{tmp_path}/out/run/x/y"
    monkeypatch.setenv("HOME", "/home/somebody")
    assert absolute_url("~/run") == "/home/somebody/run"


def test_local_files_get_the_rights_that_files_get(tmp_path: Path) -> None:
    Folder.open(str(tmp_path)).write_new("x", b"")
    Path(tmp_path / "y").write_bytes(b"")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_what_a_crash_left_half_written_is_not_listed_and_disturbs_nothing(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123456789abcdef").write_bytes(b"half")
    folder = Folder.open(str(tmp_path))
    folder.write_new("x", b"whole")
    assert folder.list() == ["x"]


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = Folder.open(str(tmp_path))
    folder.write_new("x", b"first")
    with pytest.raises(AlreadyExistsError):
        folder.write_new("x", b"second")
    assert folder.read("x") == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_an_empty_file_is_replaced_by_the_first_that_locks_it(tmp_path: Path) -> None:
    """Both writers saw an empty file; the second gets its lock after the first has replaced it."""
    (tmp_path / "x").write_bytes(b"")
    folder = Folder.open(str(tmp_path))
    with (tmp_path / "x").open("r+b") as held, ThreadPoolExecutor(2) as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        won = [pool.submit(folder.write_if_absent, "x", data) for data in (b"one", b"two")]
        assert not wait(won, timeout=0.5).done  # both wait for the lock on the same empty file
        fcntl.flock(held, fcntl.LOCK_UN)
        results = [each.result() for each in won]
    assert sorted(results) == [False, True]
    assert folder.read("x") == (b"one" if results[0] else b"two")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_the_entry_of_a_file_is_synced_after_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure takes what was not synced: the file before its name, the name before the call
    returns, and the names of new folders too."""
    done: list[str] = []
    fsync, link, rename = os.fsync, os.link, Path.replace

    def synced(handle: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name.split('-')[0]}")
        fsync(handle)

    def linked(one: Path, other: Path) -> None:
        done.append("link")
        link(one, other)

    def renamed(one: Path, other: Path) -> Path:
        done.append("rename")
        return rename(one, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(Path, "replace", renamed)
    folder = Folder.open(str(tmp_path / "run"))
    folder.write_new("a/x", b"first")
    assert sorted(done[:2]) == ["sync run", f"sync {tmp_path.name.split('-')[0]}"]
    assert done[2:] == ["sync .tmp", "link", "sync a"]
    done.clear()
    folder.replace("a/x", b"second")
    assert done == ["sync .tmp", "rename", "sync a"]
    done.clear()
    folder.write_new("a/y", b"1", is_synced=False)
    folder.write_new("a/z", b"2", is_synced=False)
    assert done == ["sync .tmp", "link"] * 2
    folder.sync(["a/y", "a/z"])
    assert done[4:] == ["sync a"]


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/run/x: (Not a directory|File exists)"):
        Folder.open(str(tmp_path / "file" / "run")).write_new("x", b"")


@pytest.mark.parametrize("name", ["a b.png", "a::b.png", "#1?.png", "é.png", "%20.png"])
def test_local_names_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"image")
    assert read_uri(name, str(tmp_path)) == b"image"
    assert read_uri(str(tmp_path / name)) == b"image"


def test_local_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceMissingError, match=r"nothing\.png: not found") as caught:
        read_uri("nothing.png", str(tmp_path))
    assert caught.value.code == "source_missing"
    with pytest.raises(SourceMissingError, match="is not a file"):
        read_uri(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceMissingError, match="is not a file"):
        read_uri(str(tmp_path / "pipe"))
    with pytest.raises(SourceMissingError, match="too long"):
        read_uri("x" * 5000, str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_local_source_without_the_right_to_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(SourceForbiddenError):
        read_uri(str(tmp_path / "secret.png"))

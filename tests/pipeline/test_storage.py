"""Folders on local disk and in memory, and reading of sources from anywhere."""

from __future__ import annotations

import errno
import http.server
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import stamina

from pipeline.errors import (
    AlreadyExistsError,
    SourceForbiddenError,
    SourceMissingError,
    StorageError,
)
from pipeline.fetch import read_uri
from pipeline.storage import Folder, absolute_url, resolve_uri


@pytest.fixture(autouse=True)
def _no_waiting_between_tries() -> object:
    with stamina.set_testing(True, attempts=2):
        yield


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder that does not exist yet."""
    if request.param == "local":
        return Folder.open(str(tmp_path / "run"))
    return Folder.open(f"memory://{tmp_path.name}/{request.node.name}/run")


def test_what_is_written_is_read_and_listed(folder: Folder) -> None:
    folder.write_new("part-1/edited/ä b#?.png", b"image")
    folder.write_new(".ledger/outcomes-00000000.parquet", b"")
    assert folder.read("part-1/edited/ä b#?.png") == b"image"
    assert folder.size("part-1/edited/ä b#?.png") == 5
    assert folder.modified("part-1/edited/ä b#?.png") > 1.7e9
    assert folder.exists("part-1/edited/ä b#?.png")
    assert folder.is_file("part-1/edited/ä b#?.png")
    assert not folder.is_file("part-1/edited")
    assert folder.list() == [".ledger/outcomes-00000000.parquet", "part-1/edited/ä b#?.png"]
    assert folder.list("part-1") == ["part-1/edited/ä b#?.png"]
    assert folder.list_folders() == [".ledger", "part-1"]
    assert folder.list_folders("part-1") == ["edited"]
    assert folder.glob("part-*/*/*.png") == ["part-1/edited/ä b#?.png"]
    with folder.open_read("part-1/edited/ä b#?.png") as file:
        assert file.read(2) == b"im"


def test_a_folder_that_is_not_there_is_empty(folder: Folder) -> None:
    assert folder.list() == []
    assert folder.list_folders() == []
    assert not folder.exists("x")
    with pytest.raises(StorageError, match="run/x: not found"):
        folder.read("x")
    with pytest.raises(StorageError, match="not found"), folder.open_read("x"):
        pass


def test_a_file_is_never_overwritten_by_write_new(folder: Folder) -> None:
    folder.write_new("a/x", b"first")
    with pytest.raises(AlreadyExistsError, match="a/x exists already and is never overwritten"):
        folder.write_new("a/x", b"second")
    assert not folder.write_if_absent("a/x", b"third")
    assert folder.write_if_absent("a/y", b"other")
    assert folder.read("a/x") == b"first"


def test_a_file_of_zero_bytes_does_not_exist(folder: Folder) -> None:
    folder.replace("a/x", b"")
    assert not folder.exists("a/x")
    assert folder.exists("a")
    assert folder.write_if_absent("a/x", b"first")
    assert not folder.write_if_absent("a/x", b"second")
    assert folder.read("a/x") == b"first"


def test_of_many_writers_at_once_one_wins_with_all_of_its_content(folder: Folder) -> None:
    contents = [bytes([number]) * 100_000 for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda data: folder.write_if_absent("a/x", data), contents))
    assert sum(won) == 1
    assert folder.read("a/x") == contents[won.index(True)]
    assert folder.list() == ["a/x"]


def test_replace_overwrites_whole(folder: Folder) -> None:
    folder.replace("stats.json", b"long content")
    folder.replace("stats.json", b"short")
    assert folder.read("stats.json") == b"short"
    assert folder.list() == ["stats.json"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", ".."])
def test_no_path_leaves_the_folder(folder: Folder, path: str) -> None:
    for act in (folder.read, folder.exists, lambda p: folder.write_new(p, b"")):
        with pytest.raises(StorageError, match="is no path inside"):
            act(path)


def test_a_folder_pickles_as_what_it_is(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    folder.write_new("x", b"1")
    again = pickle.loads(pickle.dumps(folder))
    assert again == folder
    assert again.read("x") == b"1"
    assert len(pickle.dumps(folder)) < 500


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


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/run/x: (Not a directory|File exists)"):
        Folder.open(str(tmp_path / "file" / "run")).write_new("x", b"")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket/x", "Protocol not known: nosuch.*spelt right"),
        ("bad\0url://x", "NUL"),
    ],
)
def test_a_url_that_means_nothing(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Folder.open(url)
    with pytest.raises(SourceMissingError, match=message):
        read_uri(url)


def test_options_are_for_object_stores_and_spare_the_rest(tmp_path: Path) -> None:
    options = {"endpoint_url": "http://127.0.0.1:9"}
    (tmp_path / "x").write_bytes(b"1")
    assert read_uri(str(tmp_path / "x"), options=options) == b"1"
    folder = Folder.open("memory://options", options)
    folder.replace("x", b"2")
    assert read_uri("memory://options/x", options=options) == b"2"
    with pytest.raises(StorageError, match="unexpected keyword argument 'no_such_option'"):
        Folder.open("s3://bucket/x", {"no_such_option": 1}).exists("y")


@pytest.mark.parametrize(
    ("uri", "base", "expected"),
    [
        ("a/b.png", "/data/m", "/data/m/a/b.png"),
        ("../b.png", "/data/m", "/data/b.png"),
        ("b.png", "s3://bucket/m", "s3://bucket/m/b.png"),
        ("../b.png", "s3://bucket/m", "s3://bucket/b.png"),
        ("/abs/b.png", "s3://bucket/m", "/abs/b.png"),
        ("http://host/b.png?x=1", "/data", "http://host/b.png?x=1"),
        ("b::c.png", "/data", "/data/b::c.png"),
    ],
)
def test_relative_uris_are_relative_to_their_base(uri: str, base: str, expected: str) -> None:
    assert resolve_uri(uri, base) == expected


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


class _Site(http.server.BaseHTTPRequestHandler):
    """`/ok` is there, `/forbidden` is not for us, `/flaky` works at the second try."""

    tries: dict[str, int]

    def do_GET(self) -> None:
        self.tries[self.path] = self.tries.get(self.path, 0) + 1
        known = {"/ok": 200, "/forbidden": 403, "/broken": 500}
        code = known.get(self.path, 404)
        if self.path == "/flaky":
            code = 200 if self.tries["/flaky"] > 1 else 503
        self.send_response(code)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"image")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    _Site.tries = {}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_sources_on_the_web(site: str) -> None:
    assert read_uri(f"{site}/ok", options={"endpoint_url": "not for the web"}) == b"image"
    with pytest.raises(SourceMissingError, match="not found"):
        read_uri(f"{site}/nothing")
    with pytest.raises(SourceForbiddenError, match="not allowed"):
        read_uri(f"{site}/forbidden")
    assert _Site.tries == {"/ok": 1, "/nothing": 1, "/forbidden": 1}


def test_a_request_is_tried_again_and_not_for_ever(site: str) -> None:
    assert read_uri(f"{site}/flaky") == b"image"
    assert _Site.tries["/flaky"] == 2
    with pytest.raises(SourceMissingError, match="500"):
        read_uri(f"{site}/broken")
    assert _Site.tries["/broken"] == 2

"""Folders, and sources, on every store."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from pipeline.errors import AlreadyExistsError, SourceMissingError, StorageError
from pipeline.storage.fetch import read_uri
from pipeline.storage.folder import Folder, resolve_uri
from tests.servers.stores import Store


@pytest.fixture
def folder(store: Store) -> Folder:
    """A folder that does not exist yet."""
    return store.folder("run")


def test_what_is_written_is_read_and_listed(folder: Folder, store: Store) -> None:
    folder.write_new("part-1/edited/ä b#?.png", b"image")
    folder.write_new(".ledger/outcomes-00000000.parquet", b"ledger")
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
    assert store.raw() == {
        "run/.ledger/outcomes-00000000.parquet": b"ledger",
        "run/part-1/edited/ä b#?.png": b"image",
    }


def test_a_file_is_read_piece_by_piece(folder: Folder, store: Store) -> None:
    content = bytes(range(256)) * 1000
    store.put("run/x", content)
    with folder.open_read("x") as file:
        assert file.read(2) == content[:2]
        assert file.seek(-1000, 2) == len(content) - 1000
        assert file.read() == content[-1000:]
        file.seek(100_000)
        assert file.read(50_000) == content[100_000:150_000]
        assert file.tell() == 150_000


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


def test_a_file_of_zero_bytes_does_not_exist(folder: Folder, store: Store) -> None:
    store.put("run/a/x", b"")
    store.put("run/a/y", b"there")
    assert not folder.exists("a/x")
    assert folder.exists("a")
    assert folder.list() == ["a/y"]
    assert folder.list(empty_too=True) == ["a/x", "a/y"]
    assert folder.write_if_absent("a/x", b"first")
    assert not folder.write_if_absent("a/x", b"second")
    assert folder.read("a/x") == b"first"
    assert folder.list() == ["a/x", "a/y"]


@pytest.mark.parametrize("store", ["local", "memory"], indirect=True)  # S3: conditional put
def test_of_many_writers_at_an_empty_file_one_wins(folder: Folder, store: Store) -> None:
    for attempt in range(20):
        store.put(f"run/{attempt}", b"")
        contents = [bytes([number]) * 1000 for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(partial(folder.write_if_absent, str(attempt)), contents))
        assert sum(won) == 1
        assert folder.read(str(attempt)) == contents[won.index(True)]


@pytest.mark.parametrize("store", ["local", "memory"], indirect=True)  # S3: conditional put
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


def test_what_somebody_else_writes_is_seen(folder: Folder, store: Store) -> None:
    """Clients keep listings; a run must not believe them."""
    folder.write_new("seen/first", b"1")
    assert folder.list("seen") == ["seen/first"]
    assert folder.list_folders() == ["seen"]
    assert not folder.exists("seen/second")
    store.put("run/seen/second", b"theirs")
    store.put("run/other/third", b"theirs")
    assert folder.exists("seen/second")
    assert folder.list("seen") == ["seen/first", "seen/second"]
    assert folder.list_folders() == ["other", "seen"]
    with pytest.raises(AlreadyExistsError):
        folder.write_new("seen/second", b"mine")


@pytest.mark.parametrize("store", ["memory"], indirect=True)  # refused before any store is asked
@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", ".."])
def test_no_path_leaves_the_folder(folder: Folder, path: str) -> None:
    for act in (folder.read, folder.exists, lambda p: folder.write_new(p, b"")):
        with pytest.raises(StorageError, match="is not a path inside"):
            act(path)


def test_a_folder_pickles_as_what_it_is(folder: Folder) -> None:
    folder.write_new("x", b"1")
    again = pickle.loads(pickle.dumps(folder))
    assert again == folder
    assert again.read("x") == b"1"
    assert len(pickle.dumps(folder)) < 500


def test_a_source_is_read_by_uri_and_relative_to_its_manifest(store: Store) -> None:
    uri = store.put("images/é 1.png", b"image")
    options = store.storage_options
    assert read_uri(uri, options=options) == b"image"
    assert read_uri("../images/é 1.png", store.url("manifests"), options) == b"image"


def test_a_source_that_is_not_there(store: Store) -> None:
    store.put("images/a.png", b"image")
    options = store.storage_options
    with pytest.raises(SourceMissingError, match=r"nothing\.png: not found") as caught:
        read_uri("nothing.png", store.url("images"), options)
    assert caught.value.code == "source_missing"
    with pytest.raises(SourceMissingError, match=r"images: is not a file|images: not found"):
        read_uri(store.url("images"), options=options)


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


@pytest.mark.parametrize("store", ["local", "memory"], indirect=True)
def test_options_are_for_object_stores_and_spare_the_rest(store: Store) -> None:
    options = {"endpoint_url": "http://127.0.0.1:9"}
    assert read_uri(store.put("x", b"1"), options=options) == b"1"
    folder = Folder.open(store.url(), options)
    folder.replace("y", b"2")
    assert folder.read("y") == b"2"
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

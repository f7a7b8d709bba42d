"""The storage against a real S3 server."""

from __future__ import annotations

import pickle

import pytest
import stamina

from pipeline.errors import (
    AlreadyExistsError,
    SourceForbiddenError,
    SourceMissingError,
    StorageError,
)
from pipeline.fetch import read_uri
from pipeline.ledger import Ledger
from pipeline.storage import Folder
from tests.pipeline.outcome_rows import accepted, failed, table_of
from tests.s3_server import S3Server, s3_server  # noqa: F401


@pytest.fixture(autouse=True)
def _no_waiting_between_tries() -> object:
    with stamina.set_testing(True, attempts=2):
        yield


@pytest.fixture
def folder(s3_server: S3Server, request: pytest.FixtureRequest) -> Folder:  # noqa: F811
    return Folder.open(s3_server.url(request.node.name), s3_server.storage_options)


def test_what_is_written_is_read_and_listed(folder: Folder, s3_server: S3Server) -> None:  # noqa: F811
    folder.write_new("part-1/edited/a b.png", b"image")
    folder.write_new(".ledger/outcomes-00000000.parquet", b"ledger")
    assert folder.read("part-1/edited/a b.png") == b"image"
    assert folder.size("part-1/edited/a b.png") == 5
    assert folder.list() == [".ledger/outcomes-00000000.parquet", "part-1/edited/a b.png"]
    assert folder.list("part-1") == ["part-1/edited/a b.png"]
    assert folder.list_folders() == [".ledger", "part-1"]
    assert folder.glob("*/edited/*.png") == ["part-1/edited/a b.png"]
    with folder.open_read("part-1/edited/a b.png") as file:
        assert file.read(2) == b"im"
    stored = s3_server.file("test_what_is_written_is_read_and_listed/part-1/edited/a b.png")
    assert stored.read_bytes() == b"image"


def test_a_file_is_never_overwritten_by_write_new(folder: Folder) -> None:
    folder.write_new("x", b"first")
    with pytest.raises(AlreadyExistsError, match="exists already"):
        folder.write_new("x", b"second")
    assert not folder.write_if_absent("x", b"third")
    assert folder.read("x") == b"first"


def test_a_file_written_by_another_process_is_seen_through_every_cache(folder: Folder) -> None:
    folder.write_new("seen/first", b"")
    assert folder.list("seen") == ["seen/first"]
    assert not folder.exists("seen/second")
    other = pickle.loads(pickle.dumps(folder))
    other.fs.clear_instance_cache()
    stranger = type(other.fs)(skip_instance_cache=True, **folder.options)
    stranger.pipe_file(folder.path_of("seen/second"), b"theirs")
    assert folder.exists("seen/second")
    assert folder.list("seen") == ["seen/first", "seen/second"]
    with pytest.raises(AlreadyExistsError):
        folder.write_new("seen/second", b"mine")


def test_replace_overwrites(folder: Folder) -> None:
    folder.replace("stats.json", b"1")
    folder.replace("stats.json", b"2")
    assert folder.read("stats.json") == b"2"


def test_what_is_not_there(folder: Folder, s3_server: S3Server) -> None:  # noqa: F811
    assert folder.list() == []
    assert folder.list_folders() == []
    assert not folder.exists("nothing")
    with pytest.raises(StorageError, match="nothing: not found"):
        folder.read("nothing")
    options = s3_server.storage_options
    with pytest.raises(SourceMissingError, match="not found") as caught:
        read_uri(s3_server.url("nothing.png"), options=options)
    assert caught.value.code == "source_missing"
    with pytest.raises(SourceMissingError, match="bucket does not exist"):
        read_uri("s3://no-such-bucket/a.png", options=options)


def test_a_source_is_read_by_uri_and_relative_to_its_manifest(
    folder: Folder,
    s3_server: S3Server,  # noqa: F811
) -> None:
    folder.write_new("images/é #1.png", b"image")
    uri = folder.url_of("images/é #1.png")
    assert read_uri(uri, options=s3_server.storage_options) == b"image"
    base = folder.url_of("manifests")
    assert read_uri("../images/é #1.png", base, s3_server.storage_options) == b"image"


def test_wrong_credentials_are_told_from_a_missing_source(
    folder: Folder,
    s3_server: S3Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder.write_new("a.png", b"image")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    # An option of its own keeps fsspec from handing out the client that is logged in already.
    options = {**s3_server.storage_options, "default_fill_cache": False}
    with pytest.raises(SourceForbiddenError, match="not allowed with these credentials") as caught:
        read_uri(folder.url_of("a.png"), options=options)
    assert caught.value.code == "source_forbidden"
    with pytest.raises(StorageError, match="not allowed with these credentials"):
        Folder.open(folder.url, options).write_new("b.png", b"")


def test_a_server_that_is_down_is_a_storage_error(s3_server: S3Server) -> None:  # noqa: F811
    options = {
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1},
    }
    with pytest.raises(SourceMissingError, match="Could not connect"):
        read_uri("s3://bucket/a.png", options=options)


def test_a_ledger_on_s3(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    ledger.commit(table_of(accepted(1), failed(2, "decode_failed")))
    ledger.commit(table_of(accepted(3)))
    again = Ledger.open(folder)
    assert again.done_ids() == ledger.done_ids()
    assert len(again.done_ids()) == 3
    assert again.counts() == ledger.counts()
    assert again.next_number == 2

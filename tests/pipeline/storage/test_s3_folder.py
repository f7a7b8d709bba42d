"""What is special about S3: who we are there, and what is said when it will not have us."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import stamina

from pipeline.errors import SourceForbiddenError, SourceMissingError, StorageError
from pipeline.ledger.ledger import Ledger
from pipeline.manifest.files import Manifest
from pipeline.storage.allowed_sources import SourceRules
from pipeline.storage.clients import content_type_options
from pipeline.storage.fetch import read_uri
from pipeline.storage.folder import Folder
from tests.servers.s3_gate import Gate
from tests.servers.s3_server import ACCESS_KEY, CREDENTIALS, SECRET_KEY, S3Server, write_profile

OUR_LOGGERS = ("fpe_core", "pipeline", "jobs", "stamina")


@pytest.fixture(autouse=True)
def _no_waiting_between_tries() -> object:
    with stamina.set_testing(True, attempts=2):
        yield


def test_a_piece_of_a_file_is_read(s3_server: S3Server) -> None:
    """rclone 1.75 answers a GET of a range with the checksum of the whole object."""
    folder = Folder.open(s3_server.url("run"), s3_server.storage_options)
    data = bytes(range(256)) * (12 << 10)
    folder.write_new("part.bin", data)
    with folder.open_read("part.bin") as file:
        file.seek(-8, 2)
        assert file.read(8) == data[-8:]
        file.seek(1000)
        assert file.read(300) == data[1000:1300]


def test_what_is_not_there(s3_server: S3Server) -> None:
    options = s3_server.storage_options
    with pytest.raises(SourceMissingError, match="bucket does not exist"):
        read_uri("s3://no-such-bucket/a.png", options=options)
    with pytest.raises(StorageError, match="bucket does not exist"):
        Folder.open("s3://no-such-bucket/run", options).write_new("x", b"1")


@pytest.mark.parametrize("write", ["write_new", "replace"])
def test_a_browser_is_told_what_a_file_is(s3_server: S3Server, write: str) -> None:
    folder = Folder.open(s3_server.url(write), s3_server.storage_options)
    types = {
        "report.html": "text/html; charset=utf-8",
        "part-a/edited/a.JPG": "image/jpeg",
        "part-a/edited/a.png": "image/png",
        "part-a/edited/a.webp": "image/webp",
        "part-a/metadata.parquet": "application/vnd.apache.parquet",
        "README.md": "text/markdown; charset=utf-8",
        "config.yaml": "application/yaml",
        "stats.json": "application/json",
    }
    for path in types:
        getattr(folder, write)(path, b"content")
    assert {path: s3_server.content_type(f"{write}/{path}") for path in types} == types
    getattr(folder, write)("no-ending", b"content")
    assert folder.read("no-ending") == b"content"


def test_a_content_type_goes_with_the_put_and_costs_no_request(gate: Gate) -> None:
    folder = gate.folder()
    for path in ("a", "a.html"):
        before = gate.tries.copy()
        folder.replace(path, b"content")
        assert gate.tries - before == {"PUT": 1}
    assert gate.content_types == {"a.html": "text/html; charset=utf-8"}


def test_other_stores_are_told_in_their_own_words() -> None:
    """As gcsfs has it; where there is no such thing, nothing is said."""
    told = [
        content_type_options(fsspec.get_filesystem_class(name), "a/b.webp")
        for name in ("file", "memory")
    ]
    assert told == [{}, {}]
    gcs = SimpleNamespace(protocol=("gs", "gcs"))
    assert content_type_options(gcs, "a/b.webp") == {"content_type": "image/webp"}


def test_azure_is_told_in_its_own_words() -> None:
    blob = pytest.importorskip("azure.storage.blob", reason="no adlfs here")
    for protocol in ("abfs", ("abfs", "az", "abfss")):  # of adlfs before and since 2026
        told = content_type_options(SimpleNamespace(protocol=protocol), "a/b.webp")
        assert told == {"content_settings": blob.ContentSettings(content_type="image/webp")}


def test_a_server_that_is_down_is_a_storage_error() -> None:
    options = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"connect_timeout": 1}}
    with pytest.raises(SourceMissingError, match="Could not connect"):
        read_uri("s3://bucket/a.png", options=options)
    with pytest.raises(StorageError, match="Could not connect"):
        Folder.open("s3://bucket/run", options).list()


def acts(folder: Folder) -> dict[str, Callable[[], object]]:
    """All that a job does with a store."""
    url, options = folder.url_of("a.parquet"), folder.options
    return {
        "source": lambda: read_uri(url, options=options),
        "manifest": lambda: Manifest.open(url, options),
        "read": lambda: folder.read("a.parquet"),
        "write": lambda: folder.write_new("b", b"1"),
        "replace": lambda: folder.replace("c", b"1"),
        "list": folder.list,
        "ledger": lambda: Ledger.open(folder),
    }


WRONG = {
    "secret": {"AWS_SECRET_ACCESS_KEY": "WRONG-SECRET-KEY"},
    "key": {"AWS_ACCESS_KEY_ID": "WRONG-ACCESS-KEY"},
    "nothing": dict.fromkeys(CREDENTIALS, ""),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_credentials_are_told_and_told_to_nobody(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    s3_server.put("refused/a.parquet", b"content")
    for logger in OUR_LOGGERS:
        caplog.set_level(logging.DEBUG, logger)
    for name, value in WRONG[wrong].items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    # An option of its own keeps fsspec from handing out a client that is logged in already.
    options = {**s3_server.storage_options, "config_kwargs": {"user_agent_extra": wrong}}
    texts = []
    for name, act in acts(Folder.open(s3_server.url("refused"), options)).items():
        with pytest.raises((StorageError, SourceForbiddenError)) as caught:
            act()
        assert "not allowed with these credentials" in str(caught.value), name
        assert isinstance(caught.value, SourceForbiddenError) == (name == "source")
        texts.append(str(caught.value))
    texts.append(caplog.text)
    secrets = {*CREDENTIALS.values(), *WRONG[wrong].values()} - {""}
    assert [secret for secret in secrets if any(secret in text for text in texts)] == []


def test_credentials_from_a_file_alone(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    for name, value in write_profile(tmp_path, "work").items():
        monkeypatch.setenv(name, value)
    named = {**s3_server.storage_options, "profile": "work"}
    folder = Folder.open(s3_server.url("by-file"), named)
    folder.write_new("x", b"content")
    assert read_uri(folder.url_of("x"), options=named) == b"content"
    unnamed = {**s3_server.storage_options, "config_kwargs": {"user_agent_extra": "no profile"}}
    with pytest.raises(StorageError, match="not allowed with these credentials"):
        Folder.open(folder.url, unnamed).read("x")
    with pytest.raises(StorageError, match=r"profile.*nobody.*could not be found") as caught:
        Folder.open(folder.url, {**named, "profile": "nobody"}).read("x")
    assert ACCESS_KEY not in str(caught.value)
    assert SECRET_KEY not in str(caught.value)


def test_an_endpoint_may_come_from_the_environment(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For commands that are given a run folder's URL, and no job with storage_options."""
    s3_server.put("there/status.json", b"here")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    assert Folder.open(s3_server.url("there")).read("status.json") == b"here"


@pytest.mark.parametrize("scheme", ["s3", "s3a", "s3n", "S3A", "S3N"])
def test_schemes_of_hadoop_are_s3(s3_server: S3Server, scheme: str) -> None:
    """As Spark writes them; read under rules for s3://, and outside of them not."""
    s3_server.put("hadoop/a b.png", b"image")
    uri = s3_server.url("hadoop/a b.png").replace("s3://", f"{scheme}://")
    options = s3_server.storage_options
    rules = SourceRules((s3_server.url("hadoop"),))
    assert read_uri(uri, options=options, rules=rules) == b"image"
    with pytest.raises(SourceForbiddenError):
        read_uri(uri, options=options, rules=SourceRules((s3_server.url("other"),)))
    if scheme.islower():  # a job's own URLs are in lower case
        folder = Folder.open(uri.rpartition("/")[0], options)
        folder.write_new("b.png", b"other")
        assert (folder.read("b.png"), folder.list()) == (b"other", ["a b.png", "b.png"])
        folder.fs.rm_file(folder.path_of("b.png"))

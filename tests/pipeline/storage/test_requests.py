"""Requests: one loop, ours, tries them again where it is no use to give up, and counts."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import stamina

from pipeline.errors import SourceForbiddenError, SourceMissingError, StorageError
from pipeline.manifest.files import Manifest
from pipeline.storage import clients as store_clients
from pipeline.storage import requests as store_requests
from pipeline.storage.fetch import read_uri
from pipeline.storage.folder import Folder
from pipeline.storage.requests import RequestCounts, request_counts
from tests.servers.s3_gate import ATTEMPTS, Gate
from tests.servers.stores import Store

PASSING = ["409", "500", "502", "503", "reset"]
LASTING = ["403", "404", "412", "507"]
RETRIES = {"reset": 1}
"""Of two faults; else 2. What breaks on a kept-alive connection aiohttp itself sends once more."""


@pytest.fixture
def counted() -> Callable[[], RequestCounts]:
    """counted(): what was asked since the test began."""
    before = request_counts()
    return lambda: request_counts() - before


@pytest.mark.parametrize("fault", [*PASSING, "cut"])
def test_a_read_that_failed_in_passing_is_tried_again_by_us_alone(
    gate: Gate, counted: Callable[[], RequestCounts], fault: str
) -> None:
    folder = gate.folder()
    folder.write_new("x", b"content")
    before = counted()
    gate.tries.clear()
    gate.faults["GET"] = [fault, fault]
    assert folder.read("x") == b"content"
    assert gate.tries["GET"] == 3
    assert counted() - before == RequestCounts(1, RETRIES.get(fault, 2), bytes_read=7)


@pytest.mark.parametrize("fault", PASSING)
def test_a_write_that_failed_in_passing_is_tried_again_by_us_alone(
    gate: Gate, counted: Callable[[], RequestCounts], fault: str
) -> None:
    gate.faults["PUT"] = [fault, fault]
    gate.folder().write_new("x", b"content")
    assert gate.tries["PUT"] == 3
    retries = RETRIES.get(fault, 2)
    assert counted() == RequestCounts(2, retries, bytes_written=7), "a look and a put"
    assert gate.behind.file("run/x").read_bytes() == b"content"


@pytest.mark.parametrize("fault", LASTING)
def test_what_will_not_pass_is_tried_once(
    gate: Gate, counted: Callable[[], RequestCounts], fault: str
) -> None:
    folder = gate.folder()
    gate.behind.put("run/x", b"content")
    gate.faults["GET"] = [fault]
    with pytest.raises(StorageError):
        folder.read("x")
    gate.faults["PUT"] = [fault]
    with pytest.raises(StorageError):
        folder.replace("y", b"content")
    assert (gate.tries["GET"], gate.tries["PUT"]) == (1, 1)
    assert counted() == RequestCounts(2, 0)


def test_a_server_that_does_not_answer_is_asked_again(
    gate: Gate, counted: Callable[[], RequestCounts]
) -> None:
    """At least: on a busy machine an answer can be late as well."""
    folder = gate.folder(config_kwargs={"read_timeout": 0.7})
    gate.faults["PUT"] = ["silence"]
    folder.write_new("x", b"content")
    gate.faults["GET"] = ["silence"]
    assert folder.read("x") == b"content"
    assert gate.tries["PUT"] >= 2
    assert counted().retries >= 2


def test_listings_and_questions_are_tried_again_too(
    gate: Gate, counted: Callable[[], RequestCounts]
) -> None:
    folder = gate.folder()
    folder.write_new("a/x", b"1")
    before = counted()
    gate.faults = {"GET": ["503"], "HEAD": ["503"]}
    assert folder.list() == ["a/x"]
    assert folder.exists("a/x")
    gate.faults = {"GET": ["500"]}
    assert folder.list_folders() == ["a"]
    gate.faults = {"GET": ["500", "503"]}
    assert folder.glob("*/x") == ["a/x"], "a folder that cannot be listed is not an empty one"
    gate.faults = {"GET": ["500"]}
    assert folder.glob("**/x") == ["a/x"]
    assert counted() - before == RequestCounts(6, 6)


def test_trying_ends(gate: Gate, counted: Callable[[], RequestCounts]) -> None:
    gate.faults["GET"] = ["503"] * 100
    folder = gate.folder()
    with pytest.raises(StorageError, match="SlowDown"):
        folder.list()
    assert gate.tries["GET"] == ATTEMPTS
    assert counted() == RequestCounts(1, ATTEMPTS - 1)


@pytest.mark.parametrize("fault", ["503", "reset", "cut"])
def test_a_manifest_that_is_read_piece_by_piece_is_tried_again(
    gate: Gate, store_table: bytes, counted: Callable[[], RequestCounts], fault: str
) -> None:
    folder = gate.folder()
    folder.write_new("m.parquet", store_table)
    manifest = Manifest.open(folder.url_of("m.parquet"), folder.options)
    before = counted()
    gate.tries.clear()
    gate.faults["GET"] = [fault, fault]
    assert sum(batch.rows for batch in manifest.batches()) == 3
    assert gate.tries["GET"] == 3
    assert (counted() - before).retries == RETRIES.get(fault, 2)


def test_a_piece_that_cannot_be_read_is_a_storage_error(gate: Gate) -> None:
    folder = gate.folder()
    folder.write_new("x", b"content")
    with folder.open_read("x") as file:
        gate.faults["GET"] = ["503"] * 100
        with pytest.raises(StorageError, match="run/x: SlowDown"):
            file.read()


@pytest.fixture
def store_table() -> bytes:
    """A manifest of three rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": list("abc"), "target_prompt": ["x"] * 3}), sink)
    return sink.getvalue().to_pybytes()


def test_by_default_clients_try_once_within_limits_and_a_job_may_say_otherwise(gate: Gate) -> None:
    folder = gate.folder()
    folder.exists("x")
    config = folder.fs.s3.meta.config
    assert (config.connect_timeout, config.read_timeout) == (10.0, 60.0)
    assert (config.retries["total_max_attempts"], folder.fs.retries) == (1, 1)
    options = {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 3}}
    other = gate.folder(**options)
    other.write_new("x", b"content")
    config = other.fs.s3.meta.config
    assert (config.connect_timeout, config.read_timeout) == (3, 60.0)
    before = request_counts()
    gate.tries.clear()
    gate.faults["GET"] = ["503"]
    assert other.read("x") == b"content"
    assert gate.tries["GET"] == 2
    assert (request_counts() - before).retries == 0, "that one was botocore's, on demand"
    assert other.options == {"endpoint_url": gate.endpoint_url, **options}, "left as it was given"


def test_every_store_counts(store: Store, counted: Callable[[], RequestCounts]) -> None:
    folder = store.folder("run")
    folder.write_new("x", b"12345")
    written = counted()
    assert (written.requests >= 1, written.retries) == (True, 0)
    assert (written.bytes_read, written.bytes_written) == (0, 5)
    folder.replace("y", b"123")
    assert not folder.write_if_absent("x", b"1234567")
    assert counted().bytes_written == 8, "what was refused was not written"
    assert folder.read("x") == b"12345"
    assert read_uri(store.url("run/y"), options=store.storage_options) == b"123"
    read = counted() - written
    assert (read.retries, read.bytes_read) == (0, 8)
    assert read.requests >= 4


def test_no_count_is_lost_between_threads(
    tmp_path: Path, counted: Callable[[], RequestCounts]
) -> None:
    folder = Folder.open(str(tmp_path))
    folder.write_new("x", b"123")
    before = counted()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: folder.read("x"), range(2000)))
    assert counted() - before == RequestCounts(2000, 0, bytes_read=6000)


def test_counts_add_and_subtract() -> None:
    one, two = RequestCounts(1, 2, 3, 4), RequestCounts(10, 20, 30, 40)
    assert one + two == RequestCounts(11, 22, 33, 44)
    assert (one + two) - one == two


def test_pauses_grow_and_are_spread(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """Two clients that fail together do not come back together."""
    waits: list[float] = []
    folder = gate.folder()
    folder.list()

    def note(details: stamina.instrumentation.RetryDetails) -> None:
        waits.append(details.wait_for)

    before = stamina.instrumentation.get_on_retry_hooks()
    stamina.set_testing(False)
    monkeypatch.setattr(store_requests, "_WAIT_FIRST_S", 0.001)
    monkeypatch.setattr(store_requests, "_WAIT_MOST_S", 0.05)
    monkeypatch.setattr(store_requests, "_WAIT_JITTER_S", 0.0005)
    stamina.instrumentation.set_on_retry_hooks([note])
    try:
        gate.faults["GET"] = ["503"] * (store_requests.STORE_ATTEMPTS - 1)
        folder.list()
    finally:
        stamina.instrumentation.set_on_retry_hooks(before)
    assert len(waits) == store_requests.STORE_ATTEMPTS - 1
    assert waits == sorted(waits)
    assert max(waits) <= 0.05 + 0.0005
    assert len({wait % 0.001 for wait in waits[:5]}) > 1


class _Site(http.server.BaseHTTPRequestHandler):
    """`/ok` is there, `/forbidden` not for us, `/flaky` works at the second try, `/mute` never."""

    tries: dict[str, int]
    over: threading.Event

    def do_GET(self) -> None:
        self.tries[self.path] = self.tries.get(self.path, 0) + 1
        if self.path == "/mute":
            self.over.wait()
            return
        known = {"/ok": 200, "/forbidden": 403, "/broken": 500, "/cut": 200, "/gone": 410}
        code = known.get(self.path, 404)
        if self.path == "/flaky":
            code = 200 if self.tries["/flaky"] > 1 else 503
        self.send_response(code)
        self.send_header("Content-Length", "500" if self.path == "/cut" else "5")
        self.end_headers()
        self.wfile.write(b"image")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    _Site.tries, _Site.over = {}, threading.Event()
    with (
        stamina.set_testing(True, attempts=2),
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        _Site.over.set()
        server.shutdown()
        thread.join()


def test_sources_on_the_web(site: str) -> None:
    assert read_uri(f"{site}/ok", options={"endpoint_url": "not for the web"}) == b"image"
    with pytest.raises(SourceMissingError, match="not found"):
        read_uri(f"{site}/nothing")
    with pytest.raises(SourceMissingError, match="410"):
        read_uri(f"{site}/gone")
    with pytest.raises(SourceForbiddenError, match="not allowed"):
        read_uri(f"{site}/forbidden")
    assert _Site.tries == {"/ok": 1, "/nothing": 1, "/gone": 1, "/forbidden": 1}


def test_a_source_on_the_web_is_tried_again_and_not_for_ever(
    site: str, counted: Callable[[], RequestCounts]
) -> None:
    assert read_uri(f"{site}/flaky") == b"image"
    assert _Site.tries["/flaky"] == 2
    with pytest.raises(SourceMissingError, match="500"):
        read_uri(f"{site}/broken")
    with pytest.raises(SourceMissingError):
        read_uri(f"{site}/cut")
    assert (_Site.tries["/broken"], _Site.tries["/cut"]) == (2, 2)
    assert counted() == RequestCounts(3, 3, bytes_read=5)


@pytest.mark.parametrize("limit", ["READ_TIMEOUT_S", "WEB_ANSWER_TIMEOUT_S"])
def test_a_server_that_says_nothing_is_left(
    site: str, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(store_clients, limit, 0.2)
    with pytest.raises(SourceMissingError, match=r"(?i)time"):
        read_uri(f"{site}/mute")
    assert _Site.tries["/mute"] == 2

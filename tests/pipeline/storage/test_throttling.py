"""Servers that get too many requests and say so: how long they are waited for, and what is told."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from pipeline.errors import SourceMissingError, SourceThrottledError, StorageError
from pipeline.read.decode import DecodeSettings, decode
from pipeline.storage import requests
from pipeline.storage.fetch import read_uri
from pipeline.storage.folder import Folder
from tests.builders.work_rows import work_row, work_table
from tests.servers.s3_gate import Gate


class _Site(http.server.BaseHTTPRequestHandler):
    """Answers with the next of `answers`, a status and headers; when they are over, an image."""

    answers: list[tuple[int, dict[str, str]]]
    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        status, headers = self.answers.pop(0) if self.answers else (200, {})
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "5")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"image")

    do_HEAD = do_GET  # noqa: N815  # the name that http.server looks for

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    _Site.answers, _Site.asked = [], []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, in seconds; the clock is not waited for."""
    made: list[float] = []
    monkeypatch.setattr(requests, "_sleep", made.append)
    monkeypatch.setattr(requests, "_WAIT_JITTER_S", 0.0)
    return made


@pytest.mark.parametrize("status", [429, 503])
def test_what_the_server_asks_for_is_waited(site: str, pauses: list[float], status: int) -> None:
    _Site.answers = [(status, {"Retry-After": text}) for text in ("7", " 30 ", "1", "1", "1", "1")]
    before = requests.request_counts()
    assert read_uri(f"{site}/a.png?sig=%2F") == b"image"
    assert pauses[:2] == [7.0, 30.0]
    assert sum(pauses) < requests.THROTTLE_WAIT_MOST_S
    assert _Site.asked == ["/a.png?sig=%2F"] * 7
    assert (requests.request_counts() - before).retries == 6


@pytest.mark.parametrize("has_clock", [True, False])
def test_a_date_is_waited_for_by_the_servers_own_clock(
    site: str, pauses: list[float], has_clock: bool
) -> None:
    now = 1e9 if has_clock else time.time()
    dates = {"Date": formatdate(now, usegmt=True)} if has_clock else {}
    _Site.answers = [(429, dates | {"Retry-After": formatdate(now + 40, usegmt=True)})]
    assert read_uri(f"{site}/a.png") == b"image"
    assert pauses == [pytest.approx(40, abs=5)]
    _Site.answers = [(503, dates | {"Retry-After": formatdate(now - 40, usegmt=True)})]
    assert read_uri(f"{site}/a.png") == b"image"
    assert pauses[1] < 1, "that time is over"


def test_a_server_that_asks_for_no_time_at_all_is_not_asked_for_ever(
    site: str, pauses: list[float]
) -> None:
    _Site.answers = [(429, {"Retry-After": "0"})] * 100
    with pytest.raises(SourceThrottledError, match="429 Too Many Requests"):
        read_uri(f"{site}/a.png")
    assert pauses == sorted(pauses)
    assert sum(pauses) <= requests.THROTTLE_WAIT_MOST_S
    assert len(_Site.asked) == len(pauses) + 1 < 12


@pytest.mark.parametrize(
    ("asked", "waited"),
    [(["121"], []), (["86400"], []), (["100", "21"], [100.0]), (["9" * 99], [])],
)
def test_what_is_longer_than_the_limit_is_not_waited_for(
    site: str, pauses: list[float], asked: list[str], waited: list[float]
) -> None:
    _Site.answers = [(429, {"Retry-After": text}) for text in asked]
    match = rf"a\.png\?\.+: the server answered 429 .*asks to wait {asked[-1][:9]} s;.*120 s at"
    with pytest.raises(SourceThrottledError, match=match) as caught:
        read_uri(f"{site}/a.png?sig=SECRET")
    assert caught.value.code == "source_throttled"
    assert "SECRET" not in str(caught.value)
    assert pauses == waited


def test_exactly_the_limit_is_waited_for(site: str, pauses: list[float]) -> None:
    _Site.answers = [(503, {"Retry-After": "120"})]
    assert read_uri(f"{site}/a.png") == b"image"
    assert pauses == [120.0]


@pytest.mark.parametrize("stated", [None, "", "soon", "-1", "1.5", "Mon, 99 Foo"])
def test_without_a_time_that_can_be_read_it_is_tried_as_any_other(
    site: str, pauses: list[float], stated: str | None
) -> None:
    headers = {} if stated is None else {"Retry-After": stated}
    _Site.answers = [(429, headers), (503, headers)]
    with requests.stamina.set_testing(True, attempts=3):
        assert read_uri(f"{site}/a.png") == b"image"
        _Site.answers = [(429, headers)] * 3
        with pytest.raises(SourceThrottledError, match=r"429.*too many requests"):
            read_uri(f"{site}/a.png")
        _Site.answers = [(503, headers)] * 3
        with pytest.raises(SourceMissingError, match="503"):
            read_uri(f"{site}/a.png")
    assert pauses == []


@pytest.mark.parametrize("status", [404, 410, 500])
def test_other_answers_are_not_waited_for(site: str, pauses: list[float], status: int) -> None:
    _Site.answers = [(status, {"Retry-After": "5"})] * 2
    with (
        requests.stamina.set_testing(True, attempts=2),
        pytest.raises(SourceMissingError),
    ):
        read_uri(f"{site}/a.png")
    assert pauses == []


def test_it_costs_one_row_and_has_a_code_of_its_own(site: str, pauses: list[float]) -> None:
    _Site.answers = [(429, {"Retry-After": "3600"})]
    (row,) = decode(work_table([work_row(0, uri=f"{site}/a.png")]), DecodeSettings()).to_pylist()
    assert row["failure"] == "source_throttled"
    assert "asks to wait 3600 s" in row["message"]


def test_a_manifest_on_the_web_is_waited_for_too(site: str, pauses: list[float]) -> None:
    folder = Folder.open(site)
    _Site.answers = [(503, {"Retry-After": "9"}), (429, {"Retry-After": "8"})]
    assert folder.read("m.parquet") == b"image"
    assert pauses == [9.0, 8.0]
    _Site.answers = [(429, {"Retry-After": "500"})]
    with pytest.raises(StorageError, match=r"m\.parquet: .*429"):
        folder.read("m.parquet")


def test_an_object_store_is_waited_for_too(gate: Gate, pauses: list[float]) -> None:
    folder = gate.folder()
    folder.write_new("a.png", b"image")
    gate.retry_after = "11"
    gate.faults["GET"] = ["503", "429"]
    assert folder.read("a.png") == b"image"
    assert pauses == [11.0, 11.0]
    uri = folder.url_of("a.png")
    gate.retry_after = ""
    gate.faults["GET"] = ["503"] * 100
    with pytest.raises(SourceThrottledError, match="SlowDown"):
        read_uri(uri, options=folder.options)

"""Exclusive create on an S3 server that obeys `If-None-Match`, as AWS and MinIO do."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
import stamina

from pipeline.errors import AlreadyExistsError, LeaseError, LedgerError
from pipeline.lease import take_lease
from pipeline.ledger import Ledger
from pipeline.storage import Folder
from tests.pipeline.outcome_rows import accepted, table_of
from tests.s3_server import S3Server, s3_server  # noqa: F401

TAKEN = (
    b'<?xml version="1.0"?><Error><Code>PreconditionFailed</Code>'
    b"<Message>At least one of the pre-conditions you specified did not hold</Message></Error>"
)


class Gate(http.server.ThreadingHTTPServer):
    """An S3 server in front of another, which it keeps the condition of conditional puts for."""

    def __init__(self, behind: S3Server) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = behind
        self.lock = threading.Lock()
        self.refused = 0
        self.lost_answers = 0
        self.before_put: threading.Barrier | None = None


class Handler(http.server.BaseHTTPRequestHandler):
    server: Gate
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.before_put is not None:
            self.server.before_put.wait()
        with self.server.lock:
            if self.headers.get("If-None-Match") == "*" and self._file().exists():
                self.server.refused += 1
                self._answer(412, {}, TAKEN)
                return
            status, headers, answer = self._forward(body)
        if self.server.lost_answers:
            self.server.lost_answers -= 1
            self.close_connection = True  # written, and nobody is told
            return
        self._answer(status, headers, answer)

    def do_GET(self) -> None:
        self._answer(*self._forward(b""))

    do_HEAD = do_GET  # noqa: N815  # the name that http.server looks for

    def _file(self) -> Path:
        return self.server.behind.root / unquote(self.path.split("?")[0]).lstrip("/")

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Sends the request on as it is: its signature covers the headers, Host included."""
        host = self.server.behind.endpoint_url.removeprefix("http://")
        connection = http.client.HTTPConnection(host)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def gate(s3_server: S3Server) -> Iterator[Gate]:  # noqa: F811
    with stamina.set_testing(True, attempts=2), Gate(s3_server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(gate: Gate, request: pytest.FixtureRequest) -> Folder:
    options = {"endpoint_url": f"http://127.0.0.1:{gate.server_port}"}
    return Folder.open(gate.behind.url(request.node.name), options)


def test_of_writers_that_all_saw_the_name_free_one_wins(folder: Folder, gate: Gate) -> None:
    gate.before_put = threading.Barrier(4, timeout=60)  # nobody puts before all have looked
    contents = [bytes([number]) * 1000 for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda data: folder.write_if_absent("x", data), contents))
    assert sum(won) == 1
    assert gate.refused == 3
    assert folder.read("x") == contents[won.index(True)]


def test_a_put_whose_answer_is_lost_is_not_taken_for_somebody_elses(
    folder: Folder, gate: Gate
) -> None:
    gate.lost_answers = 1
    folder.write_new("x", b"mine")
    assert gate.refused == 1
    assert folder.read("x") == b"mine"


def test_what_was_there_is_refused_without_a_put(folder: Folder, gate: Gate) -> None:
    folder.write_new("x", b"first")
    with pytest.raises(AlreadyExistsError):
        folder.write_new("x", b"first")
    assert gate.refused == 0


def test_two_drivers_on_one_ledger(folder: Folder, gate: Gate) -> None:
    one, two = Ledger.open(folder), Ledger.open(folder)
    gate.before_put = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:
        commits = [
            pool.submit(one.commit, table_of(accepted(1))),
            pool.submit(two.commit, table_of(accepted(2))),
        ]
        errors = [commit.exception() for commit in commits]
    assert [type(error) for error in errors if error] == [LedgerError]
    assert len(Ledger.open(folder).done_ids()) == 1


def test_of_two_runs_that_start_at_the_same_instant_one_is_refused(
    folder: Folder, gate: Gate
) -> None:
    def take(_: int) -> int:
        return take_lease(folder, expiry_s=60.0, silence_s=lambda *_: 0.0).token

    gate.before_put = threading.Barrier(2, timeout=60)  # both saw that nobody has it
    with ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(take, number) for number in range(2)]
        errors = [future.exception() for future in taken]
    assert [type(error) for error in errors if error] == [LeaseError]
    assert gate.refused == 1

"""An S3 server in front of the real one: obeys `If-None-Match` and `If-Match`, fails if told to.

    def test_something(gate: Gate) -> None:
        gate.faults["GET"] = ["503", "reset"]     # the next two GETs, in this order

`refusal`, a status, code and message, is what conditional puts are answered with.

The faults: an HTTP status; `reset` (the connection, before anything is answered); `cut` (the body,
in the middle); `silence` (no answer until the test is over). Those of "READ" happen to GETs of
objects, and to no listing.
"""

from __future__ import annotations

import hashlib
import http.client
import http.server
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import stamina

from pipeline.storage.folder import Folder
from tests.servers.s3_server import S3Server

ATTEMPTS = 4
_CODES = {
    "403": "AccessDenied",
    "404": "NoSuchKey",
    "409": "ConditionalRequestConflict",
    "412": "PreconditionFailed",
    "429": "TooManyRequests",
    "500": "InternalError",
    "503": "SlowDown",
    "507": "InsufficientStorage",
}


class Gate(http.server.ThreadingHTTPServer):
    """Counts what it is asked, `tries`, by method; `read` are the keys of the objects that were
    read, `bytes_read` what was sent of them, `content_types` are those of what was put."""

    daemon_threads = True

    def __init__(self, behind: S3Server) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.reset(behind)

    def reset(self, behind: S3Server) -> None:
        """Forgets everything, and stands in front of another server."""
        self.behind = behind
        self.refused = 0
        self.lost_answers = 0
        self.retry_after = ""
        self.refusal: tuple[int, str, str] | None = None
        self.before_put: threading.Barrier | None = None
        self.faults: dict[str, list[str]] = {}
        self.tries: Counter[str] = Counter()
        self.read: list[str] = []
        self.bytes_read = 0
        self.content_types: dict[str, str] = {}
        self.over = threading.Event()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def folder(self, **options: object) -> Folder:
        """The folder of a test; other options are another client."""
        return Folder.open(self.behind.url("run"), {"endpoint_url": self.endpoint_url, **options})


class Handler(http.server.BaseHTTPRequestHandler):
    server: Gate
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._fails():
            return
        if "Content-Type" in self.headers:
            self.server.content_types[self._file().name] = self.headers["Content-Type"]
        if self.server.before_put is not None:
            self.server.before_put.wait()
        if self.server.refusal is not None and "If-None-Match" in self.headers:
            self.server.refused += 1
            self._refuse(*self.server.refusal)
            return
        with self.server.lock:
            if_match = self.headers.get("If-Match")
            is_taken = self.headers.get("If-None-Match") == "*" and self._file().exists()
            if is_taken or (if_match is not None and if_match != self._etag()):
                self.server.refused += 1
                self._answer_with_error("412")
                return
            status, headers, answer = self._forward(body)
        if self.server.lost_answers:
            self.server.lost_answers -= 1
            self.close_connection = True  # written, and nobody is told
            return
        self._answer(status, headers, answer)

    def do_GET(self) -> None:
        is_read = self.command == "GET" and "?list-type" not in self.path
        if is_read:
            self.server.read.append(unquote(self.path.split("?")[0]))
        if not self._fails("READ" if is_read and "READ" in self.server.faults else ""):
            status, headers, body = self._forward(b"")
            with self.server.lock:
                self.server.bytes_read += len(body) if is_read else 0
            self._answer(status, headers, body)

    do_HEAD = do_GET  # noqa: N815  # the name that http.server looks for

    def _fails(self, kind: str = "") -> bool:
        """Takes the next fault for this method or kind, if any, and answers as it says."""
        with self.server.lock:
            self.server.tries[self.command] += 1
            faults = self.server.faults.get(kind or self.command)
            fault = faults.pop(0) if faults else ""
        if fault.isdigit():
            self._answer_with_error(fault)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fault == "cut":
            status, headers, body = self._forward(b"")
            self._answer(status, headers, body, sent=len(body) // 2)
            self.close_connection = True
        elif fault == "silence":
            self.server.over.wait()
            self.close_connection = True
        return bool(fault)

    def _file(self) -> Path:
        return self.server.behind.root / unquote(self.path.split("?")[0]).lstrip("/")

    def _etag(self) -> str:
        """The ETag of an object that was put in one piece, as S3 makes it."""
        content = self._file().read_bytes() if self._file().exists() else None
        return "" if content is None else f'"{hashlib.md5(content).hexdigest()}"'

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

    def _refuse(self, status: int, code: str, message: str) -> None:
        text = (
            f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        )
        self._answer(status, {}, text.encode())

    def _answer_with_error(self, status: str) -> None:
        code = _CODES.get(status, "")
        text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
        body = text.encode() if code and self.command != "HEAD" else b""
        stated = self.server.retry_after
        self._answer(int(status), {"Retry-After": stated} if stated else {}, body)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def gate_process(s3_process: S3Server) -> Iterator[Gate]:
    """The one gate of a test run: a client to it need not be made anew for every test."""
    with Gate(s3_process) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def gate(gate_process: Gate, s3_process: S3Server) -> Iterator[Gate]:
    """A gate before an empty prefix; requests are tried ATTEMPTS times, without pauses."""
    gate_process.reset(s3_process.with_fresh_prefix())
    with stamina.set_testing(True, attempts=ATTEMPTS):
        yield gate_process
        gate_process.over.set()

"""A faulty S3: a proxy on loopback before a real S3 server, which breaks what it is told.

    with FaultyS3(s3_server) as store:
        store.inject(Fault("plan", Kind.ERROR_500))
        run_job(job with store.storage_options)
    faults = store.disarm()

Every request of the driver and of Ray's workers comes through here, so the request itself is the
mark at which a fault happens: the code under test has no hooks. A request's *point* is what it is
for, told from its method and key: writes have the name of the thing ("lease", "edited image", ...),
reads are "read plan", questions whether it is there "look for plan", listings "list parts". The
journal keeps all requests in the order in which they were answered.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import json
import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import psutil
import pyarrow.parquet as pq

from tests.servers.s3_server import S3Server

_THINGS = (
    (r"/\.lease/holder-", "lease"),
    (r"/\.lease/beat-", "heartbeat"),
    (r"/\.lease/clock$", "clock"),
    (r"/\.lease", "leases"),
    (r"/\.ledger/outcomes-", "ledger"),
    (r"/\.ledger", "ledger files"),
    (r"/\.plan/[^/]+/work-", "work list"),
    (r"/\.plan/[^/]+/plan\.json$", "plan"),
    (r"/\.metadata-schema$", "schema"),
    (r"/config\.yaml$", "config"),
    (r"/README\.md$", "card"),
    (r"/stats\.json$", "stats"),
    (r"/part-[^/]+/edited/", "edited image"),
    (r"/part-[^/]+/source/", "source image"),
    (r"/part-[^/]+/metadata\.parquet$", "metadata"),
    (r"/manifest\.parquet$", "manifest"),
    (r"/pictures/", "picture"),
)
_READING = {"GET": "read ", "HEAD": "look for ", "PUT": ""}
_NOT_PASSED_ON = {"connection", "expect", "keep-alive", "transfer-encoding"}


class Kind(StrEnum):
    """What can happen to a request."""

    ERROR_500 = "500"
    SLOW_DOWN = "503 slow down"
    RESET = "connection reset"
    LOST_ANSWER = "answer lost"
    TIMEOUT = "timeout"
    PARTIAL_BODY = "partial body"
    HALF_UPLOAD = "upload cut off"
    DENIED = "403 access denied"
    KILL_BEFORE = "killed before"
    KILL_AFTER = "killed after"
    FULL_DISK = "disk full"
    """Not of requests: a local folder's own."""


_ANSWERS = {
    Kind.ERROR_500: (500, "InternalError", "We encountered an internal error. Please try again."),
    Kind.SLOW_DOWN: (503, "SlowDown", "Please reduce your request rate."),
    Kind.DENIED: (403, "AccessDenied", "Access Denied"),
}


@dataclass(eq=False)
class Fault:
    """One thing that goes wrong at the `nth` request of a point, counted from when it is injected.

    A `lasting` one happens to all later requests of the point too. `key` narrows the point down to
    keys that hold this text. A kill takes the process that made the request, or the `victim`.
    """

    point: str
    kind: Kind
    nth: int = 1
    lasting: bool = False
    key: str = ""
    victim: Callable[[], int] | None = None
    seen: int = 0
    fired: int = 0

    def meets(self, request: Request) -> bool:
        """Whether it happens to this request; counts those that it is for."""
        if request.point != self.point or self.key not in request.key:
            return False
        self.seen += 1
        return self.seen == self.nth or (self.lasting and self.seen > self.nth)

    def __str__(self) -> str:
        return f"{self.point}: {self.kind}"


@dataclass
class Request:
    """One request as it came and what became of it; status 0 is no answer at all."""

    method: str
    point: str
    key: str
    status: int = 0
    fault: Fault | None = None
    is_stored: bool = False
    """Whether it is a put that got through to the store."""


@dataclass
class _Answer:
    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


class FaultyS3:
    """The proxy. Its URLs are the server's, its `storage_options` lead through it.

    Clients with these options give a request up that is not answered for `read_timeout_s`.
    """

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.read_timeout_s = 10
        self.journal: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        upstream = urlsplit(server.endpoint_url).netloc

        class Handler(_Handler):
            store = self
            upstream_address = upstream

        self._proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._proxy.daemon_threads = True  # connections stay open as long as their clients like
        self._thread = threading.Thread(
            target=self._proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()
        self._thread.join()

    @property
    def storage_options(self) -> dict[str, Any]:
        """For `Job.storage_options`."""
        return {
            "endpoint_url": f"http://127.0.0.1:{self._proxy.server_port}",
            "config_kwargs": {"read_timeout": self.read_timeout_s},
        }

    def inject(self, *faults: Fault) -> None:
        """Arms faults, beside those that are armed already."""
        with self._lock:
            self._faults.extend(faults)

    def disarm(self) -> list[Fault]:
        """No more faults; returns those that happened. Fails where one did not."""
        with self._lock:
            faults, self._faults = self._faults, []
        assert all(fault.fired for fault in faults), [str(f) for f in faults if not f.fired]
        return faults

    def stored(self, point: str, since: int = 0) -> list[str]:
        """The keys that were stored at a point, in that order, once for each time.

        `since`: a length that the journal had before.
        """
        return [r.key for r in self.journal[since:] if r.point == point and r.is_stored]

    def fault_for(self, request: Request) -> Fault | None:
        """The fault that happens to a request, if one does."""
        with self._lock:
            met = [fault for fault in self._faults if fault.meets(request)]
            for fault in met[:1]:
                fault.fired += 1
        return met[0] if met else None


class _Handler(http.server.BaseHTTPRequestHandler):
    """Passes one request after the other on, unless something happens to it."""

    protocol_version = "HTTP/1.1"
    store: FaultyS3
    upstream_address: str

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = _request(self.command, self.path, body)
        request.fault = self.store.fault_for(request)
        kind = None if request.fault is None else request.fault.kind
        if kind in _ANSWERS:
            self._answer(_error(*_ANSWERS[kind]), request)
        elif kind is Kind.TIMEOUT:
            self._note(request)
            self.connection.recv(1)  # returns when the client has given up
            self._hang_up()
        elif kind is Kind.RESET:
            self._note(request)
            self._hang_up()
        elif kind is Kind.KILL_BEFORE:
            self._note(request)
            self._kill(request)
        elif kind is Kind.HALF_UPLOAD:
            self._pass_on(body, cut_at=len(body) // 2)
            self._note(request)
            self._hang_up()
        else:
            self._pass_on_whole(body, request, kind)

    def _pass_on_whole(self, body: bytes, request: Request, kind: Kind | None) -> None:
        answer = self._pass_on(body)
        request.is_stored = request.method == "PUT" and answer.status == 200
        if kind is Kind.KILL_AFTER:
            self._note(request)
            self._kill(request)
        elif kind is Kind.LOST_ANSWER:
            self._note(request)
            self._hang_up()
        elif kind is Kind.PARTIAL_BODY:
            whole = len(answer.body)
            assert whole > 1, f"nothing to cut off: {request}"
            answer.body = answer.body[: whole // 2]
            self._answer(answer, request, content_length=whole)
            self.close_connection = True
        else:
            self._answer(answer, request)

    def _pass_on(self, body: bytes, cut_at: int | None = None) -> _Answer:
        """The real server's answer; none where the upload is cut off."""
        upstream = http.client.HTTPConnection(self.upstream_address)
        try:
            # The signature covers the Host that the client meant, so it goes on as it came.
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _NOT_PASSED_ON:
                    upstream.putheader(name, value)
            upstream.endheaders(body if cut_at is None else body[:cut_at])
            if cut_at is not None:
                return _Answer(0)
            answer = upstream.getresponse()
            return _Answer(answer.status, answer.getheaders(), answer.read())
        finally:
            upstream.close()

    def _answer(self, answer: _Answer, request: Request, content_length: int | None = None) -> None:
        request.status = answer.status
        self._note(request)
        self.send_response_only(answer.status)
        is_head = self.command == "HEAD"
        for name, value in answer.headers:
            is_length = name.lower() == "content-length"
            if name.lower() not in _NOT_PASSED_ON and (is_head or not is_length):
                self.send_header(name, value)
        if not is_head:
            self.send_header("Content-Length", str(content_length or len(answer.body)))
        self.end_headers()
        if not is_head:
            self.wfile.write(answer.body)

    def _kill(self, request: Request) -> None:
        fault = request.fault
        assert fault is not None
        pid = fault.victim() if fault.victim else _owner_of(self.client_address)
        os.kill(pid, signal.SIGKILL)
        self._hang_up()

    def _hang_up(self) -> None:
        """Ends the connection as a crash would: with a reset, and without an answer."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _note(self, request: Request) -> None:
        self.store.journal.append(request)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client is gone, killed perhaps

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # hung up already
            super().finish()


def _request(method: str, path: str, body: bytes) -> Request:
    url = urlsplit(path)
    key, prefix = unquote(url.path), parse_qs(url.query).get("prefix", [""])[0]
    if "list-type" in url.query:
        thing = thing_of(f"/{prefix.rstrip('/')}", "parts")
        return Request(method, f"list {thing}", f"{key}/{prefix}")
    thing = thing_of(key)
    if method == "PUT" and thing == "ledger" and not _rows(body):
        thing = "fence"
    if method == "PUT" and thing == "heartbeat" and json.loads(body)["released"]:
        thing = "release"
    return Request(method, _READING.get(method, f"{method} ") + thing, key)


def thing_of(key: str, otherwise: str = "something else") -> str:
    """What a file is, by its path in the bucket or on disk."""
    return next((thing for pattern, thing in _THINGS if re.search(pattern, key)), otherwise)


def _rows(parquet: bytes) -> int:
    return int(pq.read_metadata(io.BytesIO(parquet)).num_rows)


def _error(status: int, code: str, message: str) -> _Answer:
    """As S3 words it."""
    xml = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"
    return _Answer(status, [("Content-Type", "application/xml")], xml.encode())


def _owner_of(address: Iterable[Any]) -> int:
    """The pid of the process that holds the client's end of a connection, one started by us."""
    for process in psutil.Process().children(recursive=True):
        try:
            connections = process.net_connections("tcp4")
        except psutil.NoSuchProcess:
            continue
        if any(tuple(c.laddr) == tuple(address) for c in connections if c.laddr):
            return int(process.pid)
    raise LookupError(f"no process of ours holds {address}")

"""A web server whose pictures come when a test says so."""

from __future__ import annotations

import http.server
import threading
from typing import Any


class GatedPictures(http.server.ThreadingHTTPServer):
    """Serves one picture under every name; to all but the first `free` names once `opened` is set.

    Which names are first is up to who asks: a run may begin with any of its blocks.
    """

    daemon_threads = True

    def __init__(self, picture: bytes, free: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.picture = picture
        self.opened = threading.Event()
        self._free = free
        self._let_through: set[str] = set()
        self._lock = threading.Lock()

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{number}.png"

    def is_free(self, name: str) -> bool:
        with self._lock:
            if len(self._let_through) < self._free:
                self._let_through.add(name)
            return name in self._let_through

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked was stopped while it waited."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: GatedPictures

    def do_GET(self) -> None:
        if not self.server.is_free(self.path):
            self.server.opened.wait()
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(self.server.picture)))
        self.end_headers()
        self.wfile.write(self.server.picture)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Silence."""

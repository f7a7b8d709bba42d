"""A web server whose pictures come when a test says so."""

from __future__ import annotations

import http.server
import threading


class GatedPictures(http.server.ThreadingHTTPServer):
    """Serves one picture under /<number>.png; numbers from `free` on wait until `opened` is set."""

    daemon_threads = True

    def __init__(self, picture: bytes, free: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.picture = picture
        self.free = free
        self.opened = threading.Event()

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{number}.png"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: GatedPictures

    def do_GET(self) -> None:
        if int(self.path.strip("/").removesuffix(".png")) >= self.server.free:
            self.server.opened.wait()
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(self.server.picture)))
        self.end_headers()
        self.wfile.write(self.server.picture)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Silence."""

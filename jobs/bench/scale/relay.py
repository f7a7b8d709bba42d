"""Counts the bytes that go to a store and come from it, between the store and its clients."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_PIECE = 1 << 18


class ByteRelay:
    """Listens on a port of its own and passes everything on; a context manager.

    Only for plain http: over TLS the store's certificate would not fit the address.

    Attributes:
        sent_bytes: to the store so far, with the headers of requests.
        received_bytes: from the store so far, with the headers of answers.
    """

    def __init__(self, endpoint_url: str) -> None:
        behind = urlsplit(endpoint_url)
        if behind.scheme != "http" or behind.hostname is None:
            raise ValueError(f"bytes are only counted at http endpoints, not {endpoint_url!r}")
        self._behind = (behind.hostname, behind.port or 80)
        self._is_open = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)
        self.sent_bytes = self.received_bytes = 0

    @property
    def endpoint_url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_open.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join()

    async def _listen(self) -> None:
        self._loop, self._is_over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._is_open.set()
        await self._is_over.wait()
        server.close()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        store, to_store = await asyncio.open_connection(*self._behind)
        await asyncio.gather(
            self._pass(client, to_store, "sent_bytes"),
            self._pass(store, to_client, "received_bytes"),
        )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: str
    ) -> None:
        try:
            while piece := await reader.read(_PIECE):
                setattr(self, count, getattr(self, count) + len(piece))
                writer.write(piece)
                await writer.drain()
        except ConnectionError:  # whoever is left sees the end of the connection
            pass
        finally:
            writer.transport.abort() if self._is_over.is_set() else writer.close()

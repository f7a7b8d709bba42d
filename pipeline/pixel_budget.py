"""A limit on the pixels that the threads of a process have in memory at the same time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """Threads take pixels before they have an image in memory, and wait until there is room.

    First come, first served, so small images do not keep a large one waiting for ever. An image
    with more pixels than the whole budget waits until nothing else is held, and is then alone.
    """

    def __init__(self, pixels: int) -> None:
        self._most = pixels
        self._held = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    def take(self, pixels: int) -> None:
        """Waits until there is room for so many pixels. `give_back` them, on any thread."""
        me = object()
        with self._changed:
            self._waiting.append(me)
            self._changed.wait_for(lambda: self._waiting[0] is me and self._has_room(pixels))
            self._waiting.popleft()
            self._held += pixels
            self._changed.notify_all()

    def give_back(self, pixels: int) -> None:
        """Frees the room that `take` took."""
        with self._changed:
            self._held -= pixels
            self._changed.notify_all()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """A context that has so many pixels."""
        self.take(pixels)
        try:
            yield
        finally:
            self.give_back(pixels)

    def _has_room(self, pixels: int) -> bool:
        return not self._held or self._held + pixels <= self._most

"""Ends a worker that makes no progress: Ray starts another, `supervisor` finds the row to blame.

A call that hangs in C code can neither be interrupted nor abandoned from Python, and it may hold
the interpreter's lock. So the whole process is ended by `faulthandler`, whose thread does not need
that lock; it writes the stack of every thread to the worker's log.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class TimeLimits:
    """Time limits in seconds.

    Attributes:
        stall_s: at most this long between two signs of progress: a UNet call, a source fetched, a
            file written.
        group_s: at most this long for one source with all its edits; n times as long for a block of
            n sources.
    """

    stall_s: float
    group_s: float


class Watchdog:
    """Watches one block. A process has only one such timer, which is set to the earliest deadline
    of all watchdogs."""

    _on_watch: ClassVar[list[Watchdog]] = []
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, limits: TimeLimits) -> None:
        self._limits = limits
        self._deadline = 0.0
        self._fed_at = 0.0

    @contextmanager
    def watching(self, groups: int) -> Iterator[None]:
        """Ends this process if the context takes too long, or `feed` is not called in time."""
        self.limit(groups)
        with self._lock:
            self._on_watch.append(self)
            self._set_timer()
        try:
            yield
        finally:
            with self._lock:
                self._on_watch.remove(self)
                self._set_timer()

    def limit(self, groups: int) -> None:
        """Restarts the time limit, with that of this many groups."""
        self._deadline = time.monotonic() + self._limits.group_s * max(1, groups)
        self._arm()

    def feed(self) -> None:
        """Reports progress. May be called from any thread."""
        if time.monotonic() - self._fed_at > self._limits.stall_s / 20:
            self._arm()

    def _arm(self) -> None:
        with self._lock:
            self._fed_at = time.monotonic()
            self._set_timer()

    @classmethod
    def _set_timer(cls) -> None:
        if not cls._on_watch:  # fed by a thread that outlived the work
            faulthandler.cancel_dump_traceback_later()
            return
        first = min(each._goes_off_at for each in cls._on_watch)
        left_s = max(first - time.monotonic(), 1e-3)
        faulthandler.dump_traceback_later(left_s, exit=True, file=2)

    @property
    def _goes_off_at(self) -> float:
        return min(self._fed_at + self._limits.stall_s, self._deadline)

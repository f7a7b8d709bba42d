"""Ends a worker that stands still: Ray starts another, and `supervisor` finds the row to blame.

A call that hangs in C code can neither be interrupted nor abandoned from Python, and it may hold
the interpreter's lock. So the process ends as a whole, by `faulthandler`, whose thread needs no
lock; where every thread stood is then in the worker's log.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class TimeLimits:
    """Seconds.

    Attributes:
        stall_s: between two signs of life: calls of the UNet, sources fetched, files written.
        group_s: for one source with all its edits; a block of n sources has n times as long.
    """

    stall_s: float
    group_s: float


class Watchdog:
    """One per process: Python has one such timer."""

    def __init__(self, limits: TimeLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._deadline = 0.0
        self._fed_at = 0.0
        self._is_watching = False

    @contextmanager
    def watching(self, groups: int) -> Iterator[None]:
        """Ends this process if the context takes too long, or `feed` is not called in time."""
        self._is_watching = True
        self.limit(groups)
        try:
            yield
        finally:
            with self._lock:
                self._is_watching = False
                faulthandler.cancel_dump_traceback_later()

    def limit(self, groups: int) -> None:
        """From now on, so many groups have their time."""
        self._deadline = time.monotonic() + self._limits.group_s * max(1, groups)
        self._arm()

    def feed(self) -> None:
        """A sign of life, from any thread."""
        if time.monotonic() - self._fed_at > self._limits.stall_s / 20:
            self._arm()

    def _arm(self) -> None:
        with self._lock:
            if not self._is_watching:
                return  # a thread's last word, after the work was over
            self._fed_at = time.monotonic()
            left_s = min(self._limits.stall_s, self._deadline - self._fed_at)
            faulthandler.dump_traceback_later(max(left_s, 1e-3), exit=True, file=2)

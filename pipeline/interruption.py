"""Ctrl-C and SIGTERM while a job runs: at once, except while something is being committed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequests:
    """A context in which both signals do what they did before, later where that is better.

    Outside the main thread, where signals never arrive, it does nothing.
    """

    def __init__(self) -> None:
        self._before: dict[int, signal._HANDLER] = {}
        self._is_holding = False
        self._held: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            self.arm()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def arm(self) -> None:
        """Takes the signals over, again where something else (Ray, when it starts) took them."""
        for number in self._before:
            signal.signal(number, self._handle)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A stretch that is not interrupted; a signal that arrives in it counts at its end."""
        self._is_holding = True
        try:
            yield
        finally:
            self._is_holding = False
            held, self._held = self._held, None
            if held is not None:
                self._pass_on(*held)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_holding:
            self._held = (number, frame)
        else:
            self._pass_on(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        before = self._before[number]
        if callable(before):
            before(number, frame)
        elif before != signal.SIG_IGN:
            raise KeyboardInterrupt

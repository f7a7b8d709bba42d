"""Ctrl-C and SIGTERM while a job runs: sources in progress are finished, within a time limit.

The first signal starts winding up, if there is work in progress; a second one ends the run at once.
A commit in progress is completed in either case.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_log = logging.getLogger(__name__)


class StopRequests:
    """A context that delays both signals; after the delay the handlers of before are called.

    Outside the main thread, where signals never arrive, it does nothing.
    """

    def __init__(self) -> None:
        self._before: dict[int, signal._HANDLER] = {}
        self._is_holding = False
        self._held: tuple[int, FrameType | None] | None = None
        self._wind_up: Callable[[], None] | None = None
        self._requested: int | None = None
        self._winding_up = threading.Lock()

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
        """Installs the handlers; called again after Ray starts, which installs its own."""
        for number in self._before:
            signal.signal(number, self._handle)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context that no signal interrupts; signals that arrive take effect at its end."""
        self._is_holding = True
        try:
            yield
        finally:
            self._is_holding = False
            held, self._held = self._held, None
            if held is not None:
                self._pass_on(*held)

    def is_requested(self) -> bool:
        """Whether a signal has started the winding up."""
        return self._requested is not None

    @contextmanager
    def winding_up(self, wind_up: Callable[[], None]) -> Iterator[None]:
        """A context in which the first signal calls `wind_up` on a thread, then takes effect.

        If the context ends before that, the signal takes effect at its end. A second signal takes
        effect at once.
        """
        self._wind_up = wind_up
        try:
            yield
        finally:
            with self._winding_up:
                self._wind_up = None
        if self._requested is not None:
            self._pass_on(self._requested, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._wind_up is not None and self._requested is None:
            self._requested = number
            threading.Thread(target=self._first_wind_up, args=(number,), daemon=True).start()
        elif self._is_holding:
            self._held = (number, frame)
        else:
            self._pass_on(number, frame)

    def _first_wind_up(self, number: int) -> None:
        wind_up = self._wind_up
        try:
            if wind_up is not None:
                wind_up()
        except Exception as error:  # noqa: BLE001 - whatever the error, the run ends now
            _log.warning("could not finish the work in progress: %s", error)
        with self._winding_up:
            if self._wind_up is not None:
                signal.pthread_kill(_main_thread(), number)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        before = self._before[number]
        if callable(before):
            before(number, frame)
        elif before != signal.SIG_IGN:
            raise KeyboardInterrupt


def _main_thread() -> int:
    ident = threading.main_thread().ident
    if ident is None:
        raise AssertionError("the main thread runs")
    return ident

"""Shows the progress of a run: live bars on a terminal, a log line every half minute elsewhere.

On a terminal Ray Data draws its own bars, one for each stage, with the log lines above them. With
`logs.bars: edits` there is one bar instead, which counts edits.
"""

from __future__ import annotations

import abc
import collections
import logging
import threading
import time
from collections.abc import Callable
from typing import Self

import pyarrow as pa
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_INTERVAL_S = 30.0

_log = logging.getLogger(__name__)


class ClosingProgress(abc.ABC):
    """What a run reports to, as a context that leaves no thread and no half-drawn bar behind."""

    @abc.abstractmethod
    def start(self, total: int, done: int) -> None:
        """`total` edits are planned, of which `done` have an outcome. Once for each round."""

    @abc.abstractmethod
    def advance(self, outcomes_table: pa.Table) -> None:
        """Outcomes that were committed; see `Tally.add`."""

    @abc.abstractmethod
    def finish(self) -> None:
        """The round has ended."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the display, however the run ended; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def choose_progress(console: Console, *, in_lines: bool = False) -> ClosingProgress:
    """A bar on a terminal; log lines if the output goes elsewhere, or if the job asks for them
    (`in_lines`)."""
    return TerminalProgress(console) if console.is_terminal and not in_lines else LogProgress()


class Tally:
    """Counts outcomes as they arrive. `done` includes what earlier runs had committed."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done = done
        self.arrived = 0
        self.outcomes: collections.Counter[str] = collections.Counter()

    def add(self, outcomes_table: pa.Table) -> None:
        """Takes in a table with an `outcome` column."""
        self.arrived += outcomes_table.num_rows
        self.done += outcomes_table.num_rows
        self.outcomes.update(outcomes_table.column("outcome").to_pylist())

    def problems(self) -> str:
        """ "2 rejected, 1 failed", or "" while there are none."""
        return ", ".join(
            f"{self.outcomes[name]} {name}"
            for name in ("rejected", "failed")
            if self.outcomes[name]
        )


class TerminalProgress(ClosingProgress):
    """A rich bar with edits done, edits per second, time elapsed and time left."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._tally = Tally(0, 0)
        self._since = time.monotonic()

    def start(self, total: int, done: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)  # of the round before
        self._tally = Tally(total, done)
        self._since = time.monotonic()
        self._task = self._bar.add_task(
            "edits", total=total, completed=done, note="starting the workers"
        )
        self._bar.start()

    def advance(self, outcomes_table: pa.Table) -> None:
        if self._task is None:
            return
        self._tally.add(outcomes_table)
        rate = self._tally.arrived / max(time.monotonic() - self._since, 1e-9)
        problems = self._tally.problems()
        note = f"{rate:.2f}/s" + (f", {problems}" if problems else "")
        self._bar.update(self._task, completed=self._tally.done, note=note)

    def finish(self) -> None:
        self._bar.stop()

    def close(self) -> None:
        self._bar.stop()


class LogProgress(ClosingProgress):
    """A log line at the start, at the end and every `interval_s` seconds in between.

    A thread writes them even while no edit arrives, as a silent log looks like a hanging job.
    """

    def __init__(
        self, interval_s: float = LINE_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._tally = Tally(0, 0)
        self._since = self._last_line = clock()
        self._first: tuple[float, int] | None = None
        """When the first edits arrived, and how many: the time before was start-up."""

    def start(self, total: int, done: int) -> None:
        self._stop.clear()
        with self._lock:
            self._tally, self._first = Tally(total, done), None
            self._since = self._last_line = self._clock()
        _log.info("%d of %d edits to do; starting the workers", total - done, total)
        thread = threading.Thread(target=self._tick_until_stopped, name="progress", daemon=True)
        thread.start()
        self._thread = thread  # only now: ctrl-C may come between the two, and finish() joins it

    def advance(self, outcomes_table: pa.Table) -> None:
        with self._lock:
            self._tally.add(outcomes_table)
            if self._first is None:
                self._first = (self._clock(), self._tally.arrived)
        self.tick()

    def tick(self) -> None:
        """Writes a line if the last one is `interval_s` old."""
        with self._lock:
            now = self._clock()
            if now - self._last_line < self._interval_s:
                return
            self._last_line = now
            line = self._line(now)
        _log.info(line)

    def finish(self) -> None:
        if self._thread is None:
            return
        self.close()
        with self._lock:
            line = self._line(self._clock())
        _log.info(line)

    def _line(self, now: float) -> str:
        tally, gone_s = self._tally, now - self._since
        if not tally.arrived:
            return f"{tally.done}/{tally.total} edits, waiting for the first ({gone_s:.0f} s)"
        parts = [
            f"{tally.done}/{tally.total} edits",
            f"{tally.arrived / max(gone_s, 1e-9):.2f} edits/s",
            f"{gone_s:.0f} s elapsed",
            self._left(now),
            tally.problems(),
        ]
        return ", ".join(part for part in parts if part)

    def _left(self, now: float) -> str:
        """Estimated time left, from the rate since the first edits arrived; "" while unknown."""
        tally = self._tally
        if self._first is None or tally.arrived <= self._first[1] or tally.done >= tally.total:
            return ""
        pace = (now - self._first[0]) / (tally.arrived - self._first[1])
        return f"about {pace * (tally.total - tally.done):.0f} s left"

    def _tick_until_stopped(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.tick()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

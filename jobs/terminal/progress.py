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
    """What a run reports its progress to. As a context manager it ends its thread and its bar."""

    @abc.abstractmethod
    def start(self, total: int, done: int) -> None:
        """Called once per round: `total` edits are planned, `done` of them have an outcome."""

    @abc.abstractmethod
    def advance(self, outcomes_table: pa.Table) -> None:
        """Called with the outcomes of each commit; see `ProgressCounts.add`."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Called when the round has ended."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the display, whether the run succeeded or not. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def choose_progress(console: Console, *, in_lines: bool = False) -> ClosingProgress:
    """A bar on a terminal; log lines if the output goes elsewhere, or if the job asks for them
    (`in_lines`)."""
    return TerminalProgress(console) if console.is_terminal and not in_lines else LogProgress()


class ProgressCounts:
    """Counts outcomes as they arrive. `done` includes those that earlier runs committed."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done = done
        self.arrived = 0
        self.outcomes: collections.Counter[str] = collections.Counter()

    def add(self, outcomes_table: pa.Table) -> None:
        """Adds the rows of a table with an `outcome` column."""
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
        self._counts = ProgressCounts(0, 0)
        self._since = time.monotonic()

    def start(self, total: int, done: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)  # from the previous round
        self._counts = ProgressCounts(total, done)
        self._since = time.monotonic()
        self._task = self._bar.add_task(
            "edits", total=total, completed=done, note="starting the workers"
        )
        self._bar.start()

    def advance(self, outcomes_table: pa.Table) -> None:
        if self._task is None:
            return
        self._counts.add(outcomes_table)
        rate = self._counts.arrived / max(time.monotonic() - self._since, 1e-9)
        problems = self._counts.problems()
        note = f"{rate:.2f}/s" + (f", {problems}" if problems else "")
        self._bar.update(self._task, completed=self._counts.done, note=note)

    def finish(self) -> None:
        self._bar.stop()

    def close(self) -> None:
        self._bar.stop()


class LogProgress(ClosingProgress):
    """A log line at the start, at the end and every `interval_s` seconds in between.

    A thread writes them, so that the log does not fall silent while no edit arrives.
    """

    def __init__(
        self, interval_s: float = LINE_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._counts = ProgressCounts(0, 0)
        self._since = self._last_line = clock()
        self._first: tuple[float, int] | None = None
        """When the first edits arrived, and how many they were. The time before that was
        start-up."""

    def start(self, total: int, done: int) -> None:
        self._stop.clear()
        with self._lock:
            self._counts, self._first = ProgressCounts(total, done), None
            self._since = self._last_line = self._clock()
        _log.info("%d of %d edits to do; starting the workers", total - done, total)
        thread = threading.Thread(target=self._tick_until_stopped, name="progress", daemon=True)
        thread.start()
        self._thread = (
            thread  # only after start(): ctrl-C may come in between, and finish() joins this thread
        )

    def advance(self, outcomes_table: pa.Table) -> None:
        with self._lock:
            self._counts.add(outcomes_table)
            if self._first is None:
                self._first = (self._clock(), self._counts.arrived)
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
        counts, gone_s = self._counts, now - self._since
        if not counts.arrived:
            return f"{counts.done}/{counts.total} edits, waiting for the first ({gone_s:.0f} s)"
        parts = [
            f"{counts.done}/{counts.total} edits",
            f"{counts.arrived / max(gone_s, 1e-9):.2f} edits/s",
            f"{gone_s:.0f} s elapsed",
            self._left(now),
            counts.problems(),
        ]
        return ", ".join(part for part in parts if part)

    def _left(self, now: float) -> str:
        """Estimated time left, from the rate since the first edits arrived; "" while unknown."""
        counts = self._counts
        if self._first is None or counts.arrived <= self._first[1] or counts.done >= counts.total:
            return ""
        pace = (now - self._first[0]) / (counts.arrived - self._first[1])
        return f"about {pace * (counts.total - counts.done):.0f} s left"

    def _tick_until_stopped(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.tick()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

"""Progress is a bar for people and a line every half minute for logs."""

from __future__ import annotations

import io
import logging
import threading

import pyarrow as pa
import pytest
from rich.console import Console

from jobs.terminal.progress import LogProgress, TerminalProgress, choose_progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def outcomes(*names: str) -> pa.Table:
    return pa.table({"outcome": list(names)})


def test_a_line_comes_when_half_a_minute_has_passed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="jobs.terminal.progress")
    clock = Clock()
    with LogProgress(clock=clock) as progress:
        progress.start(total=10, done=0)
        clock.now = 27.0
        progress.advance(outcomes("accepted"))
        assert len(caplog.messages) == 1, "only the line of the start"
        clock.now = 30.0
        progress.advance(outcomes("accepted", "failed"))
        clock.now = 45.0
        progress.advance(outcomes("rejected"))
        clock.now = 60.0
        progress.tick()
    assert caplog.messages[1:] == [
        "3/10 edits, 0.10 edits/s, 30 s elapsed, about 10 s left, 1 failed",
        "4/10 edits, 0.07 edits/s, 60 s elapsed, about 66 s left, 1 rejected, 1 failed",
    ]


def test_waiting_for_the_first_edit_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="jobs.terminal.progress")
    clock = Clock()
    with LogProgress(interval_s=10.0, clock=clock) as progress:
        progress.start(total=10, done=4)
        clock.now = 12.0
        progress.tick()
    assert caplog.messages == [
        "6 of 10 edits to do; starting the workers",
        "4/10 edits, waiting for the first (12 s)",
    ]


def test_the_thread_talks_while_nothing_arrives_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="jobs.terminal.progress")
    said = threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: (  # type: ignore[method-assign]
        said.set() if "waiting for the first" in record.getMessage() else None
    )
    logger = logging.getLogger("jobs.terminal.progress")
    logger.addHandler(handler)
    try:
        with LogProgress(interval_s=0.01) as progress:
            progress.start(total=1, done=0)
            assert said.wait(60)
        assert "progress" not in [thread.name for thread in threading.enumerate()]
    finally:
        logger.removeHandler(handler)


def test_the_last_line_tells_the_whole(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="jobs.terminal.progress")
    with LogProgress() as progress:
        progress.start(total=3, done=1)
        progress.advance(outcomes("accepted", "accepted"))
        progress.finish()
    assert caplog.messages[-1].startswith("3/3 edits")


def test_the_bar_counts_what_is_done() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with TerminalProgress(console) as progress:
        progress.start(total=8, done=5)
        progress.advance(outcomes("accepted", "failed"))
        progress.finish()
    shown = screen.getvalue()
    assert "7/8" in shown
    assert "1 failed" in shown


def test_a_second_round_starts_anew(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="jobs.terminal.progress")
    screen = io.StringIO()
    bar = TerminalProgress(Console(file=screen, force_terminal=True, width=120))
    for progress in (LogProgress(interval_s=0.01), bar):
        with progress:
            for total, done in ((2, 0), (5, 2)):
                progress.start(total=total, done=done)
                progress.advance(outcomes(*["accepted"] * (total - done)))
                progress.finish()
    assert caplog.messages[0].startswith("2 of 2 edits to do")
    assert any(line.startswith("3 of 5 edits to do") for line in caplog.messages)
    assert caplog.messages[-1].startswith("5/5 edits")
    assert "5/5" in screen.getvalue()
    assert not [t for t in threading.enumerate() if t.name == "progress"]


def test_the_console_decides() -> None:
    assert isinstance(choose_progress(Console(file=io.StringIO())), LogProgress)
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert isinstance(choose_progress(terminal), TerminalProgress)
    assert isinstance(choose_progress(terminal, in_lines=True), LogProgress)


def test_nothing_to_do_leaves_nothing_behind() -> None:
    for progress in (LogProgress(), TerminalProgress(Console(file=io.StringIO()))):
        with progress:
            progress.finish()

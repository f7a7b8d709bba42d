"""Signals during a run, with real signals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from pipeline.run.signals import StopRequests


class Asked(KeyboardInterrupt):
    """What the command's own handler raises."""


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's may be on
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


def test_ctrl_c_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), StopRequests():
        kill(signal.SIGINT)


def test_sigterm_interrupts_where_nobody_handles_it() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt), StopRequests():
        kill(signal.SIGTERM)


def test_the_commands_own_handler_is_asked_even_after_ray_took_the_signal() -> None:
    def handler(_number: int, _frame: FrameType | None) -> None:
        raise Asked

    signal.signal(signal.SIGTERM, handler)
    with StopRequests() as stops:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does when it starts
        stops.arm()
        with pytest.raises(Asked):
            kill(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_waits_for_the_commit() -> None:
    events: list[str] = []

    def commit(stops: StopRequests) -> None:
        with stops.held():
            kill(signal.SIGINT)
            events.append("committed")
        events.append("went on")

    with StopRequests() as stops, pytest.raises(KeyboardInterrupt):
        commit(stops)
    assert events == ["committed"]


def test_nothing_is_interrupted_without_a_signal() -> None:
    with StopRequests() as stops, stops.held():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequests():
        kill(signal.SIGINT)


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    during: list[object] = []

    def work() -> None:
        with StopRequests() as stops, stops.held():
            during.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [before]


class Winding:
    """Something to wind up: says when it has begun, ends when it is told."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        self.begun.set()
        self.may_end.wait(30)


def test_the_first_signal_winds_up_and_counts_after_that() -> None:
    winding, steps = Winding(), []

    def work(stops: StopRequests) -> None:
        with stops.winding_up(winding):
            assert not stops.is_requested()
            kill(signal.SIGTERM)
            assert winding.begun.wait(30)
            steps.append(stops.is_requested())  # and the work goes on meanwhile
            winding.may_end.set()
            for _ in range(600):  # a signal that comes just before a wait does not end that wait
                threading.Event().wait(0.05)
            steps.append("was not interrupted")

    with StopRequests() as stops, pytest.raises(KeyboardInterrupt):
        work(stops)
    assert (steps, winding.calls) == ([True], 1)


def test_a_second_signal_does_not_wait() -> None:
    winding = Winding()

    def work(stops: StopRequests) -> None:
        with stops.winding_up(winding):
            kill(signal.SIGINT)
            assert winding.begun.wait(30)
            kill(signal.SIGINT)
            pytest.fail("the second signal was ignored")

    with StopRequests() as stops, pytest.raises(KeyboardInterrupt):
        work(stops)
    assert not winding.may_end.is_set()
    winding.may_end.set()


def test_work_that_ends_meanwhile_is_interrupted_at_its_end() -> None:
    winding, events = Winding(), []

    def work(stops: StopRequests) -> None:
        with stops.winding_up(winding):
            kill(signal.SIGTERM)
            events.append("done")
        events.append("went on")

    with StopRequests() as stops, pytest.raises(KeyboardInterrupt):
        work(stops)
    winding.may_end.set()
    assert events == ["done"]


def test_what_fails_to_wind_up_still_ends(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("no answer")

    def work(stops: StopRequests) -> None:
        with stops.winding_up(fail):
            kill(signal.SIGINT)
            threading.Event().wait(30)
            pytest.fail("was not interrupted")

    with StopRequests() as stops, pytest.raises(KeyboardInterrupt):
        work(stops)
    assert "could not finish the work in progress: no answer" in caplog.text

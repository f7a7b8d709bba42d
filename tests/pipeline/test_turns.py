"""Who has the model: one block at a time, in order, and a suspect alone in its process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from pipeline.turns import Turn, Turns

PATIENCE_S = 60.0
"""For what has to come. That something does not come is seen by what has to come first."""


class Block:
    """A block in a thread of its own, which does what it is told when it is told."""

    def __init__(self, turns: Turns, pool: ThreadPoolExecutor, log: list[str], name: str) -> None:
        self.has_model = threading.Event()
        self._pass_on, self._passed, self._end = (threading.Event() for _ in range(3))
        self._turns, self._log, self._name = turns, log, name
        self._pool = pool
        self._thread: Future[None] | None = None

    def start(self, *, alone: bool = False) -> Block:
        self._thread = self._pool.submit(self._run, alone)
        return self

    def pass_on(self) -> None:
        self._pass_on.set()
        assert self._passed.wait(PATIENCE_S)

    def end(self) -> None:
        self._pass_on.set()
        self._end.set()
        assert self._thread is not None
        self._thread.result(PATIENCE_S)

    def _run(self, alone: bool) -> None:
        with self._turns.take(alone=alone) as turn:
            self._log.append(self._name)
            self.has_model.set()
            assert self._pass_on.wait(PATIENCE_S)
            if not self._end.is_set():
                turn.pass_on()
            self._passed.set()
            assert self._end.wait(PATIENCE_S)
            self._log.append(f"{self._name} ended")


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def make(log: list[str]) -> Iterator[Callable[[str], Block]]:
    turns = Turns()
    with ThreadPoolExecutor(4) as pool:
        yield lambda name: Block(turns, pool, log, name)


def test_the_model_is_free_when_it_is_passed_on(
    make: Callable[[str], Block], log: list[str]
) -> None:
    first, second = make("first").start(), make("second")
    assert first.has_model.wait(PATIENCE_S)
    second.start()
    first.pass_on()
    assert second.has_model.wait(PATIENCE_S), "while the first has not ended"
    second.end()
    first.end()
    assert log == ["first", "second", "second ended", "first ended"]


def test_without_that_the_next_waits_for_the_end(
    make: Callable[[str], Block], log: list[str]
) -> None:
    first, second = make("first").start(), make("second")
    assert first.has_model.wait(PATIENCE_S)
    second.start()
    first.end()
    assert second.has_model.wait(PATIENCE_S)
    second.end()
    assert log == ["first", "first ended", "second", "second ended"]


def test_a_suspect_is_alone_and_nobody_overtakes_it(
    make: Callable[[str], Block], log: list[str]
) -> None:
    first, suspect, third = make("first").start(), make("suspect"), make("third")
    assert first.has_model.wait(PATIENCE_S)
    first.pass_on()
    suspect.start(alone=True)
    first.end()
    assert suspect.has_model.wait(PATIENCE_S)
    third.start()
    suspect.end()
    assert third.has_model.wait(PATIENCE_S)
    third.end()
    assert log == ["first", "first ended", "suspect", "suspect ended", "third", "third ended"]


@contextmanager
def _taken(turns: Turns) -> Iterator[Turn]:
    with turns.take(alone=True) as turn:
        yield turn


def test_a_block_that_raises_frees_the_model() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), _taken(turns):
        raise ZeroDivisionError
    with _taken(turns) as turn:
        turn.pass_on()
        turn.pass_on()
        assert not turn.has_model

"""An editing worker has one team of OpenMP threads, and its model serves one block at a time, in
order. A block that is suspected of a crash has the worker to itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fpe_core import Editor, load_checkpoint
from pipeline.edit.model_sharing import (
    ModelHold,
    ModelLock,
    ModelThread,
    ThisThread,
    use_one_openmp_thread,
)
from pipeline.edit.phase_clock import ClockedEditor


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """A thread that is neither pytest's nor a model's."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def raises() -> None:
    raise ValueError("on purpose")


@pytest.mark.parametrize("make", [ModelThread, ThisThread])
def test_calls_have_their_results_and_errors(make: Callable[[], Any]) -> None:
    thread = make()
    assert thread.run(lambda: 7) == 7
    assert thread.submit(pow, 2, 5).result() == 32
    with pytest.raises(ValueError, match="on purpose"):
        thread.run(raises)
    assert isinstance(thread.submit(raises).exception(), ValueError)


def test_all_calls_are_one_thread_s_and_it_may_call_itself(elsewhere: ThreadPoolExecutor) -> None:
    thread = ModelThread()
    seen = [thread.run(threading.get_ident) for _ in range(3)]
    seen.append(elsewhere.submit(thread.run, threading.get_ident).result())
    seen.append(thread.run(lambda: thread.run(threading.get_ident)))
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen


@pytest.mark.usefixtures("three_threads")
def test_a_thread_can_use_one_openmp_thread_while_the_others_keep_theirs(
    elsewhere: ThreadPoolExecutor,
) -> None:
    thread = ModelThread()
    assert thread.run(torch.get_num_threads) == 3
    elsewhere.submit(use_one_openmp_thread).result()
    assert elsewhere.submit(torch.get_num_threads).result() == 1
    assert thread.run(torch.get_num_threads) == torch.get_num_threads() == 3


def test_an_editor_computes_in_the_thread_it_was_given(
    tiny_checkpoint: Path, picture: Callable[..., Image.Image]
) -> None:
    thread = ModelThread()
    checkpoint = load_checkpoint(tiny_checkpoint, device="cpu")
    within, seen = Editor(checkpoint), set[int]()
    editor = ClockedEditor(within, thread)
    networks = (
        checkpoint.text_encoder,
        within.unet,
        within.autoencoder.encoder,
        within.autoencoder.decoder,
    )
    for network in networks:
        network.register_forward_hook(lambda *_: seen.add(threading.get_ident()))
    parameters = replace(checkpoint.default_parameters, steps=2)
    inversion = editor.invert([picture(1)], parameters=parameters)
    made = editor.edit(inversion, [["a red cat"]]).edits[0][0]
    editor.through_autoencoder([picture(1)], parameters)
    assert seen == {thread.run(threading.get_ident)}
    plain = Editor(load_checkpoint(tiny_checkpoint, device="cpu"))
    expected = plain.edit(plain.invert([picture(1)], parameters=parameters), [["a red cat"]])
    assert made.image.tobytes() == expected.edits[0][0].image.tobytes()


PATIENCE_S = 60.0
"""For what has to come. That something does not come is seen by what has to come first."""


class Block:
    """A block in a thread of its own, which does what it is told when it is told."""

    def __init__(
        self, lock: ModelLock, pool: ThreadPoolExecutor, log: list[str], name: str
    ) -> None:
        self.has_model = threading.Event()
        self._release, self._released, self._end = (threading.Event() for _ in range(3))
        self._lock, self._log, self._name = lock, log, name
        self._pool = pool
        self._thread: Future[None] | None = None

    def start(self, *, exclusive: bool = False) -> Block:
        self._thread = self._pool.submit(self._run, exclusive)
        return self

    def release_model(self) -> None:
        self._release.set()
        assert self._released.wait(PATIENCE_S)

    def end(self) -> None:
        self._release.set()
        self._end.set()
        assert self._thread is not None
        self._thread.result(PATIENCE_S)

    def _run(self, exclusive: bool) -> None:
        with self._lock.acquire(exclusive=exclusive) as hold:
            self._log.append(self._name)
            self.has_model.set()
            assert self._release.wait(PATIENCE_S)
            if not self._end.is_set():
                hold.release_model()
            self._released.set()
            assert self._end.wait(PATIENCE_S)
            self._log.append(f"{self._name} ended")


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def make(log: list[str]) -> Iterator[Callable[[str], Block]]:
    lock = ModelLock()
    with ThreadPoolExecutor(4) as pool:
        yield lambda name: Block(lock, pool, log, name)


def test_the_model_is_free_when_it_is_released(
    make: Callable[[str], Block], log: list[str]
) -> None:
    first, second = make("first").start(), make("second")
    assert first.has_model.wait(PATIENCE_S)
    second.start()
    first.release_model()
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
    first.release_model()
    suspect.start(exclusive=True)
    first.end()
    assert suspect.has_model.wait(PATIENCE_S)
    third.start()
    suspect.end()
    assert third.has_model.wait(PATIENCE_S)
    third.end()
    assert log == ["first", "first ended", "suspect", "suspect ended", "third", "third ended"]


@contextmanager
def _taken(lock: ModelLock) -> Iterator[ModelHold]:
    with lock.acquire(exclusive=True) as hold:
        yield hold


def test_a_block_that_raises_frees_the_model() -> None:
    lock = ModelLock()
    with pytest.raises(ZeroDivisionError), _taken(lock):
        raise ZeroDivisionError
    with _taken(lock) as hold:
        hold.release_model()
        hold.release_model()
        assert not hold.has_model

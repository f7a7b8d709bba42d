"""One thread for all that computes with models, from loading them on.

torch's loops on a CPU are OpenMP's, which keeps a team of threads for every thread that has begun
one. Teams that together are larger than the machine no longer wait for work busily but fall asleep
after every loop, and being woken takes longer than most loops do: with two teams on two cores a
UNet was a sixth slower (docs/speed.md). So blocks that overlap share one thread, and one team, and
other threads loop alone.

Blocks of one editing worker take turns at its model, so that the device need not wait.

While one block's pictures are judged, encoded and written, the next one has the model. A block that
is under suspicion (`supervisor`) is alone in its process from beginning to end: whatever happens
then, happened to it.

"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ModelThread(Executor):
    """Calls of one thread, one after the other, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._me = self._pool.submit(threading.get_ident).result()

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        return self._pool.submit(fn, *args, **kwargs)

    def run(self, call: Callable[[], _T]) -> _T:
        """Its result, waited for; at once where this is the thread already."""
        return call() if threading.get_ident() == self._me else self.submit(call).result()


class ThisThread(Executor):
    """Stands where a `ModelThread` does in a program that has no other thread with models."""

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        done: Future[_T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            done.set_exception(error)
        return done

    def run(self, call: Callable[[], _T]) -> _T:
        return call()


def loop_alone() -> None:
    """From now on loops of this thread begin no team."""
    import torch  # here, because the driver and the reading workers load this module too

    torch.get_num_threads()  # torch's own number becomes a thread's when it is first asked
    threadpool_limits(limits=1, user_api="openmp")


BLOCKS_AT_A_TIME = 2
"""One has the model; the other is on its way to the storage, or ready and waiting."""


class Turn:
    """A block's turn, from the moment that it has the model."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.has_model = True

    def pass_on(self) -> None:
        """The block needs the model no more. Does nothing the second time."""
        self._turns.free(self)


class Turns:
    """Who has the model of this process. First come, first served."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[object] = []
        self._inside: list[Turn] = []

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[Turn]:
        """Waits for the model; with `alone`, until no other block is in hand at all."""
        me = object()
        with self._changed:
            self._waiting.append(me)
            self._changed.wait_for(lambda: self._waiting[0] is me and self._is_free(alone))
            self._waiting.remove(me)
            turn = Turn(self)
            self._inside.append(turn)
            self._changed.notify_all()
        try:
            yield turn
        finally:
            with self._changed:
                self._inside.remove(turn)
                self._changed.notify_all()

    @property
    def blocks_in_hand(self) -> int:
        """How many have had the model and are not through."""
        return len(self._inside)

    def free(self, turn: Turn) -> None:
        with self._changed:
            turn.has_model = False
            self._changed.notify_all()

    def _is_free(self, alone: bool) -> bool:
        return not (self._inside if alone else any(turn.has_model for turn in self._inside))

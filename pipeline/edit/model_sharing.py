"""How the blocks of one editing worker share its model: one thread computes, one block at a time.

torch runs its loops on a CPU with OpenMP, which keeps a team of threads for every thread that ever
ran such a loop. If the teams together have more threads than the machine has cores, their threads
sleep after every loop instead of spinning, and waking them takes longer than most loops: with two
teams on two cores a UNet was a sixth slower (docs/speed.md). So all work with models, loading them
included, runs on one thread with one team (`ModelThread`), and other threads use one OpenMP thread.

A block holds the `ModelLock` only until its edits are made. While its images are judged, encoded
and written, the next block has the model, so the device does not wait. A block that is suspected of
having crashed a worker (`supervisor`) holds the lock exclusively from beginning to end, so another
crash can only have been caused by it.
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
    """An executor with one thread: calls run one after the other, in the order of submission."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._me = self._pool.submit(threading.get_ident).result()

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        return self._pool.submit(fn, *args, **kwargs)

    def run(self, call: Callable[[], _T]) -> _T:
        """Runs `call` on the thread and returns its result. May be called on that thread itself."""
        return call() if threading.get_ident() == self._me else self.submit(call).result()


class ThisThread(Executor):
    """Takes the place of a `ModelThread` where nothing else uses OpenMP: runs calls right away on
    the calling thread, one at a time."""

    def __init__(self) -> None:
        self._turn = threading.RLock()

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        done: Future[_T] = Future()
        try:
            with self._turn:
                result = fn(*args, **kwargs)
            done.set_result(result)
        except Exception as error:  # noqa: BLE001 - it is raised when the result is read
            done.set_exception(error)
        return done

    def run(self, call: Callable[[], _T]) -> _T:
        with self._turn:
            return call()


def use_one_openmp_thread() -> None:
    """Limits OpenMP to one thread for code that runs on the calling thread."""
    import torch  # here, because the driver and the reading workers load this module too

    torch.get_num_threads()  # the first call on a thread sets torch's number, so it comes first
    threadpool_limits(limits=1, user_api="openmp")


BLOCKS_AT_A_TIME = 2
"""One has the model; the other is being written, or is prepared and waits for the model."""


class ModelHold:
    """One block's hold on a `ModelLock`."""

    def __init__(self, lock: ModelLock) -> None:
        self._lock = lock
        self.has_model = True

    def release_model(self) -> None:
        """Lets the next block have the model. Does nothing the second time."""
        self._lock.release(self)


class ModelLock:
    """Which block may use the model of this process. First come, first served."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[object] = []
        self._holds: list[ModelHold] = []

    @contextmanager
    def acquire(self, *, exclusive: bool) -> Iterator[ModelHold]:
        """Waits for the model; with `exclusive`, until every other block has left this context too.

        The model is released at the end of the context at the latest.
        """
        me = object()
        with self._changed:
            self._waiting.append(me)
            self._changed.wait_for(lambda: self._waiting[0] is me and self._is_free(exclusive))
            self._waiting.remove(me)
            hold = ModelHold(self)
            self._holds.append(hold)
            self._changed.notify_all()
        try:
            yield hold
        finally:
            with self._changed:
                self._holds.remove(hold)
                self._changed.notify_all()

    def release(self, hold: ModelHold) -> None:
        """See `ModelHold.release_model`."""
        with self._changed:
            hold.has_model = False
            self._changed.notify_all()

    def _is_free(self, exclusive: bool) -> bool:
        return not (self._holds if exclusive else any(hold.has_model for hold in self._holds))

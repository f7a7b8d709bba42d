"""One thread for all that computes with models, from loading them on.

torch's loops on a CPU are OpenMP's, which keeps a team of threads for every thread that has begun
one. Teams that together are larger than the machine no longer wait for work busily but fall asleep
after every loop, and being woken takes longer than most loops do: with two teams on two cores a
UNet was a sixth slower (docs/speed.md). So blocks that overlap share one thread, and one team, and
other threads loop alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch
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
    torch.get_num_threads()  # torch's own number becomes a thread's when it is first asked
    threadpool_limits(limits=1, user_api="openmp")

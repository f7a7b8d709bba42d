"""Runs passes through a network as CUDA graphs, if launching kernels takes longer than they run.

A small pass leaves a GPU waiting for the host: with Stable Diffusion 1.5's shapes two rows take the
host about 20 ms, and the GPU a fifth of that. A captured pass is launched as a whole. Whether that
is faster is measured during the run, without waiting for the device: the second pass of each shape
is timed on host and device. A large pass keeps the device busy anyway and is never captured,
because a graph costs memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MOST_GRAPHS = 64
_UNTIMED = 1
"""Passes of a shape before one is timed: the first chooses algorithms and compiles kernels."""
_BUSY = 1.5
"""A device that takes at least this many times as long as the host never waits for the host."""

_log = logging.getLogger(__name__)

TensorFunction = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass
class _Seen:
    """What is known about a shape.

    `timed`: of its timed pass, the host's seconds and the CUDA events before and after it."""

    passes: int = 0
    timed: tuple[float, Any, Any] | None = None
    gains: bool | None = None
    captured: _Captured | None = field(default=None, repr=False)


class CudaGraphs:
    """Runs functions of tensors, captured where that is faster.

    Whatever else a function reads, mostly weights, has to stay at the same address.

    Attributes:
        captures: False runs everything without graphs. A counter of operations needs this, because
            it sees none inside a graph. False for good once memory has run out, because graphs keep
            theirs.
    """

    def __init__(self) -> None:
        self.captures = True
        self._seen: dict[Hashable, _Seen] = {}
        self._pool: Any = None
        self._graphs = 0

    def run(
        self, kind: Hashable, function: TensorFunction, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """`function(inputs)`, which is on the current CUDA device.

        Args:
            kind: functions of equal kind, input shapes and dtypes run the same kernels.
            function: returns tensors, does not wait for the device, and calls no library but torch.
            inputs: tensors on the device.
        """
        if not self.captures:
            return function(inputs)
        try:
            return self._run(kind, function, inputs)
        except torch.OutOfMemoryError:
            self.captures, self._seen, self._pool = False, {}, None
            raise

    def _run(
        self, kind: Hashable, function: TensorFunction, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        key = kind, tuple((each.shape, each.stride(), each.dtype) for each in inputs)
        seen = self._seen.setdefault(key, _Seen())
        seen.passes += 1
        if seen.captured is not None:
            return _replay(seen.captured, inputs)
        if seen.gains is None and seen.timed is not None:
            seen.gains = _host_is_slower(*seen.timed)
        if seen.gains and self._graphs < _MOST_GRAPHS:
            return self._capture(seen, function, inputs)
        if seen.gains is None and seen.timed is None and seen.passes > _UNTIMED:
            return _timed(seen, function, inputs)
        return function(inputs)

    def _capture(
        self, seen: _Seen, function: TensorFunction, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        kept = tuple(torch.empty_like(each).copy_(each) for each in inputs)
        made = function(inputs)
        graph = torch.cuda.CUDAGraph()
        self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        seen.gains = False  # unless it works
        try:
            # Other threads, the judge's above all, may go on using the device.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = function(kept)
        except RuntimeError as error:  # such as out of memory; without a graph it is only slower
            _log.warning("a pass was not captured as a CUDA graph: %s", str(error).split("\n")[0])
            return made
        seen.captured = _Captured(graph, kept, outputs)
        self._graphs += 1
        return made


def _replay(captured: _Captured, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs are copies: the next replay writes to the same place."""
    torch._foreach_copy_(list(captured.inputs), list(inputs))
    captured.graph.replay()
    return tuple(output.clone() for output in captured.outputs)


def _timed(seen: _Seen, function: TensorFunction, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    began = time.perf_counter()
    made = function(inputs)
    host_s = time.perf_counter() - began
    end.record()
    seen.timed = host_s, begin, end
    return made


def _host_is_slower(host_s: float, begin: Any, end: Any) -> bool | None:
    """None as long as the device has not finished: ask again later."""
    if not end.query():
        return None
    return bool(begin.elapsed_time(end) / 1000 < _BUSY * host_s)

"""The most memory that something took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity

_MEMORY_EVENT = "[memory]"  # torch's name for what an allocator gave out or took back


class PeakMemory:
    """`bytes` after `measuring`.

    On CUDA everything that the allocator gave out at the peak, weights included. On a CPU what
    tensors held at the peak beyond what they held at the start, by the events of torch's profiler:
    the size of the process would depend on what had run before, for a heap keeps its pages.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes = 0
        self._device = device

    @contextmanager
    def measuring(self) -> Iterator[None]:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            yield
            self.bytes = torch.cuda.max_memory_allocated(self._device)
            return
        with torch.profiler.profile(
            activities=[ProfilerActivity.CPU], profile_memory=True
        ) as profiler:
            yield
        self.bytes = _peak(profiler)


def _peak(profiler: Any) -> int:
    """The highest sum of allocations less releases, in order of time."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == _MEMORY_EVENT]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest

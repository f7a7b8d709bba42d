"""The most memory that something took: of the device, or of this process on a CPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # proc_pid_clear_refs(5): the peak becomes what is resident now


class PeakMemory:
    """`bytes` after `measuring`; None where the system does not tell.

    On CUDA everything that the allocator gave out at the peak, weights included; on a CPU the
    growth of the process beyond what it held at the start.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes: int | None = None
        self._device = device

    @contextmanager
    def measuring(self) -> Iterator[None]:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            yield
            self.bytes = torch.cuda.max_memory_allocated(self._device)
            return
        before = _resident_now()
        yield
        if before is not None:
            self.bytes = max(0, _status_bytes("VmHWM") - before)


def _resident_now() -> int | None:
    """Resident bytes, from which the peak is counted anew."""
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        return _status_bytes("VmRSS")
    except OSError:  # no Linux, or a system that forbids it
        return None


def _status_bytes(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", (_PROCESS / "status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0

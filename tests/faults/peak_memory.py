"""The most memory that a block of code takes above what the process had before, by the kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
is_measurable = _RESET.exists()
"""Linux only."""


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Yields a list that holds the bytes when the block is done."""
    _RESET.write_text("5")  # the kernel's "high water mark" starts anew (man 5 proc)
    before = _high_water_bytes()
    growth: list[int] = []
    yield growth
    growth.append(_high_water_bytes() - before)


def _high_water_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    assert found
    return int(found[1]) * 1024

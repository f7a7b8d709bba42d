"""What a process has freed and still holds, back to the system.

Between what stays (ids of edits, Ray's records of blocks) lies what came and went with a commit.
glibc hands such holes to nobody else, so a driver grows with the edits that went through it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import pyarrow as pa


def give_back_memory() -> None:
    """Takes some milliseconds. Where the C library is not glibc, only Arrow's memory goes."""
    pa.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no CDLL(None)
        return None
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return trim

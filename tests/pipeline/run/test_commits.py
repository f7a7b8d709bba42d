"""What was freed between what stays goes back to the system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent.parent
_HOLES = """
import psutil
from pipeline.free_memory import give_back_memory
kept = [bytes(50_000) for _ in range(4_000)][::10]  # 200 MB; a tenth of it stays
before = psutil.Process().memory_info().rss
give_back_memory()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux is meant")
def test_holes_between_what_stays_are_given_back() -> None:
    """In a process of its own: what others left free there would be given back as well."""
    command = [sys.executable, "-c", _HOLES]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(ended.stdout) > 100_000_000


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.run import commits as free_memory

    monkeypatch.setattr(free_memory.ctypes, "CDLL", lambda _: object())
    free_memory._malloc_trim.cache_clear()
    try:
        assert free_memory._malloc_trim() is None
        free_memory.give_back_memory()
    finally:
        free_memory._malloc_trim.cache_clear()

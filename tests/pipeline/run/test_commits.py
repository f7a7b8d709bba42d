"""What was freed between what stays goes back to the system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent.parent
_HOLES = """
import psutil
from pipeline.run.commits import give_back_memory
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
    from pipeline.run import commits

    monkeypatch.setattr(commits.ctypes, "CDLL", lambda _: object())
    commits._malloc_trim.cache_clear()
    try:
        assert commits._malloc_trim() is None
        commits.give_back_memory()
    finally:
        commits._malloc_trim.cache_clear()

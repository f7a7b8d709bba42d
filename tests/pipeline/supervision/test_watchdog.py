"""The watchdog ends a process of its own: these are real ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

STALLED = {
    "in Python": "while True: time.sleep(0.01)",
    # A backtracking expression of 2**40 steps holds the interpreter's lock all the time.
    "with the lock held": "re.match(r'(x+x+)+y', 'x' * 40)",
    "without a sign of life in time": "time.sleep(60)",
}


def run(body: str, stall_s: float = 0.3, group_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    lines = [
        "import re, sys, threading, time",
        "from pipeline.supervision.watchdog import TimeLimits, Watchdog",
        f"watchdog = Watchdog(TimeLimits(stall_s={stall_s}, group_s={group_s}))",
        body,
        "print('came to its end')",
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("how", STALLED)
def test_a_process_that_stands_still_is_ended_and_says_where(how: str) -> None:
    ended = run(f"with watchdog.watching(1):\n    {STALLED[how]}")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "Timeout" in ended.stderr
    assert 'File "<string>", line 5' in ended.stderr


def test_signs_of_life_from_any_thread_keep_it_going() -> None:
    feed = "for _ in range(40): time.sleep(0.02); watchdog.feed()"
    ended = run(
        f"def work():\n    {feed}\n"
        "with watchdog.watching(1):\n"
        "    thread = threading.Thread(target=work); thread.start(); thread.join()"
    )
    assert ended.stdout == "came to its end\n", ended.stderr


def test_a_group_has_its_time_however_lively_it_is() -> None:
    busy = "with watchdog.watching(2):\n    while True: time.sleep(0.01); watchdog.feed()"
    ended = run(busy, stall_s=30.0, group_s=0.3)
    assert (ended.returncode, ended.stdout) == (1, "")


OTHER = "other = Watchdog(TimeLimits(stall_s=0.4, group_s=60.0))\n"


def test_one_block_may_end_while_another_is_watched() -> None:
    ended = run(
        OTHER + "with watchdog.watching(1):\n    with other.watching(1): pass\n"
        "    while True: time.sleep(0.01); other.feed()"
    )
    assert (ended.returncode, ended.stdout) == (1, "")


def test_signs_of_life_of_one_block_are_no_signs_of_another() -> None:
    ended = run(
        OTHER + "with watchdog.watching(1), other.watching(1):\n"
        "    while True: time.sleep(0.01); watchdog.feed()",
        stall_s=30.0,
    )
    assert (ended.returncode, ended.stdout) == (1, "")


def test_nothing_happens_after_the_work() -> None:
    after = "with watchdog.watching(1): pass\nwatchdog.feed(); time.sleep(0.8)"
    assert run(after).stdout == "came to its end\n"

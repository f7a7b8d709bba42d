"""Who a process is, and when it is known to be gone: with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.ledger.holder import Holder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], Holder]]:
    """Another process, and it as a holder."""
    code = (
        "import sys\n"
        "from pipeline.ledger.holder import Holder\n"
        "print(Holder.me(60.0).to_bytes().decode().replace('\\n', ' '), flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, Holder.from_bytes(process.stdout.readline().encode())
        process.kill()


def test_a_process_that_runs_is_not_gone(other: tuple[subprocess.Popen[str], Holder]) -> None:
    process, holder = other
    assert holder.pid == process.pid
    assert not holder.is_gone()
    assert not Holder.me(60.0).is_gone()


def test_a_killed_process_is_gone_even_before_its_parent_looks(
    other: tuple[subprocess.Popen[str], Holder],
) -> None:
    process, holder = other
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
    assert holder.is_gone()
    process.wait()
    assert holder.is_gone()


def test_another_process_under_the_same_pid_is_another_process() -> None:
    assert replace(Holder.me(60.0), started="1").is_gone()


def test_a_living_process_whose_start_is_not_known_is_not_gone() -> None:
    assert not replace(Holder.me(60.0), started="").is_gone()


@pytest.mark.parametrize(
    "unknown", [{"host": "elsewhere"}, {"machine": "other boot"}, {"machine": ""}]
)
def test_of_another_machine_nothing_is_known(
    other: tuple[subprocess.Popen[str], Holder], unknown: dict[str, str]
) -> None:
    process, holder = other
    process.kill()
    process.wait()
    assert not replace(holder, **unknown).is_gone()


def test_a_holder_survives_being_written_down() -> None:
    me = Holder.me(5.0)
    assert Holder.from_bytes(me.to_bytes()) == me
    assert Holder.me(5.0) != me, "two takings by one process are two"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"host": "a"}'])
def test_something_else_is_no_holder(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Holder.from_bytes(data)

"""One run at a time: who is refused, who may take over, and what an old holder can do no more."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import LeaseError, LedgerError, StorageError
from pipeline.ledger.lease import (
    Lease,
    LeaseState,
    hold_lease,
    lease_state,
    silence_s,
    take_lease,
)
from pipeline.ledger.ledger import Ledger
from pipeline.storage.folder import Folder
from tests.builders.outcome_rows import accepted, key, table_of
from tests.servers.stores import Store

EXPIRY_S = 60.0


@pytest.fixture
def folder(store: Store) -> Folder:
    return store.folder("run")


def silent_for(seconds: float) -> Callable[[Folder, LeaseState], float]:
    """A clock by which the holder was last heard so long ago."""
    return lambda _folder, _state: seconds


def take(folder: Folder, silent_s: float = 0.0) -> Lease:
    return take_lease(folder, expiry_s=EXPIRY_S, silence_s=silent_for(silent_s))


def beats(folder: Folder) -> int:
    try:
        return int(json.loads(folder.read(".lease/beat-00000001.json"))["beats"])
    except StorageError:
        return 0


def test_a_second_run_is_refused_and_told_who_has_the_folder(folder: Folder) -> None:
    with hold_lease(folder, expiry_s=EXPIRY_S, heartbeat_s=20.0) as lease:
        before = [name for name in folder.list() if name != ".lease/clock"]
        message = (
            rf"is in use by another run: process {os.getpid()} on {lease.holder.host} \(since 20.* "
            r"UTC\)\. Its last heartbeat was \d s ago, and after 60 s without one it counts as gone"
            r".*start the same command again"
        )
        with (
            pytest.raises(LeaseError, match=message),
            hold_lease(folder, expiry_s=1.0, heartbeat_s=0.1),
        ):
            pytest.fail("two had it")
        lease.check()
        assert [name for name in folder.list() if name != ".lease/clock"] == before


def test_it_is_given_back_at_the_end_whatever_the_end(folder: Folder) -> None:
    for number, error in enumerate((None, ValueError(), KeyboardInterrupt(), SystemExit()), 1):
        try:
            with hold_lease(folder, expiry_s=EXPIRY_S, heartbeat_s=20.0) as lease:
                assert (lease.token, lease.is_takeover) == (number, False)
                if error is not None:
                    raise error
        except BaseException as raised:  # noqa: BLE001 - also what is no Exception
            assert raised is error  # noqa: PT017 - it is compared, not only expected
        state = lease_state(folder)
        assert state is not None
        assert (state.token, state.is_released, state.is_over) == (number, True, True)
    assert not Ledger.open(folder).files(), "nobody had to be fenced off"


def test_a_holder_that_is_silent_is_alive_until_it_expires(folder: Folder) -> None:
    """Its own promise counts, whatever the other's settings are."""
    take(folder)
    with pytest.raises(LeaseError, match="last heartbeat was 60 s ago"):
        take_lease(folder, expiry_s=1.0, silence_s=silent_for(EXPIRY_S))
    lease = take(folder, EXPIRY_S + 1)
    assert (lease.token, lease.is_takeover) == (2, True)


def test_time_is_the_stores(folder: Folder) -> None:
    """Both stamps are put on by the store; whole seconds are as fine as S3 has them."""
    take(folder)
    state = lease_state(folder)
    assert state is not None
    assert -1.0 <= silence_s(folder, state) < EXPIRY_S
    assert silence_s(folder, replace(state, heard_at=state.heard_at - 1000.0)) >= 999.0


def test_a_holder_that_lost_the_folder_is_told_by_whom(folder: Folder) -> None:
    old = take(folder)
    old.check()
    new = take(folder, EXPIRY_S + 1)
    with pytest.raises(LeaseError, match=rf"{new.holder.pid} on .* has it now.*lease\.expiry_s"):
        old.check()
    new.check()
    pickle.loads(pickle.dumps(new)).check()  # as an actor does it


def test_a_paused_writer_cannot_commit_after_the_takeover(folder: Folder) -> None:
    """It stopped after its check and before its write; time does not help, the fence does."""
    old = take(folder)
    ledger = Ledger.open(folder, old)
    ledger.commit(table_of(accepted(1)))

    class Paused:
        """The old holder's right: good when it was asked, and then it slept."""

        def check(self) -> None:
            old.check()
            take(folder, EXPIRY_S + 1)

    paused = Ledger.open(folder, Paused())
    with pytest.raises(LedgerError, match="another run on this folder"):
        paused.commit(table_of(accepted(2)))
    with pytest.raises(LeaseError):
        ledger.commit(table_of(accepted(3)))
    assert Ledger.open(folder).done_ids() == {key(1).edit_id}
    state = lease_state(folder)
    assert state is not None
    assert state.token == 2


def test_a_commit_just_before_the_fence_is_kept(folder: Folder) -> None:
    old = take(folder)
    ledger = Ledger.open(folder, old)
    ledger.commit(table_of(accepted(1)))
    new = take(folder, EXPIRY_S + 1)
    taken_over = Ledger.open(folder, new)
    assert taken_over.done_ids() == {key(1).edit_id}
    assert taken_over.commit(table_of(accepted(1), accepted(2))).num_rows == 1
    assert Ledger.open(folder).counts().accepted == 2


def test_a_holder_that_died_before_its_fence_is_followed_by_one_that_has_it(
    folder: Folder,
) -> None:
    """Three holders: the second let nothing go, so the third fences the first off too."""
    first = take(folder)
    second = Lease(folder, 2, replace(first.holder, nonce="second"), is_takeover=True)
    folder.write_new(".lease/holder-00000002.json", second.holder.to_bytes())
    assert folder.list(".ledger") == []
    third = take(folder, EXPIRY_S + 1)
    assert (third.token, third.is_takeover) == (3, True)
    assert folder.list(".ledger") == [".ledger/outcomes-00000000.parquet"]


def test_the_heart_beats_until_the_end_and_not_after_a_takeover(folder: Folder) -> None:
    with hold_lease(folder, expiry_s=EXPIRY_S, heartbeat_s=0.001):
        while beats(folder) < 3:
            pass
        take(folder, EXPIRY_S + 1)
    beat = json.loads(folder.read(".lease/beat-00000001.json"))
    assert beat["released"] is False, "what another run has is not ours to give back"
    state = lease_state(folder)
    assert state is not None
    assert (state.token, state.is_released) == (2, False)


def test_of_two_on_a_store_that_does_not_refuse_the_overwritten_one_stops(folder: Folder) -> None:
    """Both saw the token free at the same instant, and the store let both write it."""
    one = take(folder)
    two = replace(one, holder=replace(one.holder, nonce="two"))
    folder.replace(".lease/holder-00000001.json", two.holder.to_bytes())
    two.check()
    with pytest.raises(LeaseError, match="has it now"):
        Ledger.open(folder, one).commit(table_of(accepted(1)))


def test_a_lease_that_was_removed_is_lost(folder: Folder) -> None:
    lease = take(folder)
    folder.fs.rm(folder.path_of(".lease/holder-00000001.json"))
    with pytest.raises(LeaseError, match="somebody removed its lease"):
        lease.check()


@pytest.mark.parametrize("name", ["holder", "beat"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"7"])
def test_a_damaged_lease_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = Folder.open(str(tmp_path))
    take(folder)
    folder.replace(f".lease/{name}-00000001.json", content)
    with pytest.raises(StorageError, match=rf"{name}-00000001\.json is damaged.*remove \.lease"):
        take(folder)


def test_a_folder_that_nobody_ever_had(folder: Folder) -> None:
    assert lease_state(folder) is None
    assert folder.list() == []


def test_of_many_that_start_together_one_gets_it(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))

    def try_to_take(_: int) -> int:
        try:
            return take(folder).token
        except LeaseError:
            return 0

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(try_to_take, range(8))) == [0] * 7 + [1]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lease of tmp_path and waits."""
    code = (
        "import signal, sys\n"
        "from pipeline.ledger.lease import hold_lease\n"
        "from pipeline.storage.folder import Folder\n"
        "with hold_lease(Folder.open(sys.argv[1]), expiry_s=60.0, heartbeat_s=20.0):\n"
        "    print('held', flush=True)\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_refused_while_it_lives(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(LeaseError, match=f"in use by another run: process {holder.pid} on"):
        take_lease(Folder.open(str(tmp_path)), expiry_s=EXPIRY_S)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc; elsewhere it expires")
def test_after_kill_9_on_this_machine_the_next_run_takes_over_at_once(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = Folder.open(str(tmp_path))
    old = Ledger.open(folder)
    holder.kill()
    holder.wait()
    with hold_lease(folder, expiry_s=EXPIRY_S, heartbeat_s=20.0) as lease:
        assert (lease.token, lease.is_takeover) == (2, True)
        with pytest.raises(LedgerError):
            old.commit(table_of(accepted(1)))


def test_ctrl_c_gives_it_back(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGINT)
    holder.wait()
    state = lease_state(Folder.open(str(tmp_path)))
    assert state is not None
    assert state.is_released

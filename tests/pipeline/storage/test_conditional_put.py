"""Exclusive create on an S3 server that obeys `If-None-Match`, as AWS and MinIO do, and on servers
that refuse the header."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipeline.errors import AlreadyExistsError, LeaseError, LedgerError, StorageError
from pipeline.ledger.lease import hold_lease, take_lease
from pipeline.ledger.ledger import Ledger
from pipeline.storage import exclusive_put
from pipeline.storage.folder import Folder
from tests.builders.outcome_rows import accepted, table_of
from tests.servers.s3_gate import Gate


@pytest.fixture
def folder(gate: Gate) -> Folder:
    return gate.folder()


def test_of_writers_that_all_saw_the_name_free_one_wins(folder: Folder, gate: Gate) -> None:
    gate.before_put = threading.Barrier(4, timeout=60)  # nobody puts before all have looked
    contents = [bytes([number]) * 1000 for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda data: folder.write_if_absent("x", data), contents))
    assert sum(won) == 1
    assert gate.refused == 3
    assert folder.read("x") == contents[won.index(True)]


def test_a_put_whose_answer_is_lost_is_not_taken_for_somebody_elses(
    folder: Folder, gate: Gate
) -> None:
    gate.lost_answers = 1
    folder.write_new("x", b"mine")
    assert gate.refused == 1
    assert folder.read("x") == b"mine"


def test_a_put_that_lands_after_it_was_given_up_is_not_taken_for_somebody_elses(
    folder: Folder, gate: Gate
) -> None:
    """It is not there yet when it is looked for, and in the way of the next try."""
    gate.lost_answers = 1
    gate.faults["HEAD"] = ["404", "404"]  # before the first try, and before the second
    folder.write_new("x", b"mine")
    assert (gate.tries["PUT"], gate.refused) == (2, 1)
    assert folder.read("x") == b"mine"


def test_what_a_failed_write_left_empty_is_written_over(folder: Folder, gate: Gate) -> None:
    folder.replace("x", b"")
    folder.write_new("x", b"mine")
    assert gate.refused == 1
    assert folder.read("x") == b"mine"


def test_what_was_there_is_refused_without_a_put(folder: Folder, gate: Gate) -> None:
    folder.write_new("x", b"first")
    with pytest.raises(AlreadyExistsError):
        folder.write_new("x", b"first")
    assert gate.refused == 0


def test_two_drivers_on_one_ledger(folder: Folder, gate: Gate) -> None:
    one, two = Ledger.open(folder), Ledger.open(folder)
    gate.before_put = threading.Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as pool:
        commits = [
            pool.submit(one.commit, table_of(accepted(1))),
            pool.submit(two.commit, table_of(accepted(2))),
        ]
        errors = [commit.exception() for commit in commits]
    assert [type(error) for error in errors if error] == [LedgerError]
    assert len(Ledger.open(folder).done_ids()) == 1


def test_of_two_runs_that_start_at_the_same_instant_one_is_refused(
    folder: Folder, gate: Gate
) -> None:
    def take(_: int) -> int:
        return take_lease(folder, expiry_s=60.0, silence_s=lambda *_: 0.0).token

    gate.before_put = threading.Barrier(2, timeout=60)  # both saw that nobody has it
    with ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(take, number) for number in range(2)]
        errors = [future.exception() for future in taken]
    assert [type(error) for error in errors if error] == [LeaseError]
    assert gate.refused == 1


REFUSALS = [
    (501, "NotImplemented", "A header you provided implies functionality that is not implemented."),
    (501, "", ""),
    (400, "NotImplemented", "A header you provided implies functionality that is not implemented."),
    (400, "InvalidArgument", "Unsupported header 'if-none-match' received for this API call."),
    (400, "InvalidRequest", "Conditional writes are not available"),
    (405, "NotImplemented", "no"),
]
"""S3's own words (its API reference, Error responses), and those in which other servers say it."""


@pytest.fixture
def _nothing_is_known_of_the_store() -> Iterator[None]:
    exclusive_put._WITHOUT_CONDITIONS.clear()
    yield
    exclusive_put._WITHOUT_CONDITIONS.clear()


@pytest.mark.usefixtures("_nothing_is_known_of_the_store")
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_server_that_refuses_the_condition_is_written_to_after_a_look(
    folder: Folder,
    gate: Gate,
    refusal: tuple[int, str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate.refusal = refusal
    with caplog.at_level(logging.WARNING):
        folder.write_new("a/x", b"first")
        folder.write_new("a/y", b"second")
        assert not folder.write_if_absent("a/x", b"third")
        with pytest.raises(AlreadyExistsError):
            folder.write_new("a/y", b"second")
        assert folder.write_if_absent("z", b"fourth")
    assert (folder.read("a/x"), folder.read("a/y")) == (b"first", b"second")
    assert (gate.tries["PUT"], gate.refused) == (4, 1), "it is asked once, and remembered"
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "refuses conditional puts" in told[0]
    assert "start only one at a time" in told[0]


@pytest.mark.usefixtures("_nothing_is_known_of_the_store")
def test_without_conditions_what_came_between_is_seen_before_another_try(
    folder: Folder, gate: Gate
) -> None:
    gate.refusal = REFUSALS[0]
    folder.write_new("first", b"1")
    gate.lost_answers = 1
    folder.write_new("x", b"mine")
    assert folder.read("x") == b"mine"
    gate.faults["HEAD"] = ["404"]  # somebody else's write, just after the first look
    folder.replace("y", b"theirs")
    with pytest.raises(AlreadyExistsError):
        folder.write_new("y", b"mine")
    assert folder.read("y") == b"theirs"
    folder.replace("empty", b"")
    folder.write_new("empty", b"mine")
    assert folder.read("empty") == b"mine"


def test_an_empty_file_is_won_by_one_of_its_writers(folder: Folder, gate: Gate) -> None:
    """All writers see that the name is free, that the put is refused, and that the file is empty:
    only its ETag tells who came first."""
    folder.replace("x", b"")
    contents = [bytes([number]) * 1000 for number in range(4)]
    folders = [gate.folder(default_cache_type=name) for name in ("none", "all", "bytes", "mmap")]
    gate.before_put = threading.Barrier(4, timeout=60)
    looked = threading.Barrier(4, timeout=60)
    replace = exclusive_put.put

    def put_together(*arguments: Any, **conditions: Any) -> None:
        if "IfMatch" in conditions:
            looked.wait()
        replace(*arguments, **conditions)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(exclusive_put, "put", put_together)
        patch.setattr(exclusive_put, "_REPLACING", contextlib.nullcontext())  # other machines
        won = list(pool.map(lambda each, data: each.write_if_absent("x", data), folders, contents))
    assert sum(won) == 1
    assert folder.read("x") == contents[won.index(True)]


@pytest.mark.usefixtures("_nothing_is_known_of_the_store")
def test_without_conditions_runs_take_turns_and_ledgers_grow(folder: Folder, gate: Gate) -> None:
    gate.refusal = REFUSALS[0]
    with hold_lease(folder, expiry_s=60, heartbeat_s=20) as lease:
        Ledger.open(folder).commit(table_of(accepted(1)))
        lease.check()
        with pytest.raises(LeaseError):
            take_lease(folder, expiry_s=60, silence_s=lambda *_: 0.0)
    assert take_lease(folder, expiry_s=60).token == 2
    Ledger.open(folder).commit(table_of(accepted(2)))
    assert len(Ledger.open(folder).done_ids()) == 2


@pytest.mark.usefixtures("_nothing_is_known_of_the_store")
@pytest.mark.parametrize(
    "refusal",
    [
        (400, "InvalidArgument", "Invalid storage class"),
        (400, "BadDigest", "The Content-MD5 you specified did not match"),
        (403, "AccessDenied", "no conditional puts for you"),
        (507, "InsufficientStorage", "full"),
    ],
)
def test_other_refusals_are_errors_as_before(
    folder: Folder, gate: Gate, refusal: tuple[int, str, str]
) -> None:
    gate.refusal = refusal
    with pytest.raises(StorageError):
        folder.write_new("x", b"mine")
    assert not exclusive_put._WITHOUT_CONDITIONS
    assert not folder.exists("x")

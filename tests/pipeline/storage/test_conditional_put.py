"""Exclusive create on an S3 server that obeys `If-None-Match`, as AWS and MinIO do."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import AlreadyExistsError, LeaseError, LedgerError
from pipeline.ledger.lease import take_lease
from pipeline.ledger.ledger import Ledger
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

"""The ledger: what is committed stays, once."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fpe_core.judging.rules import RejectReason
from pipeline.errors import LeaseError, LedgerError
from pipeline.ledger.ledger import Ledger, LedgerCounts, fence, number_of
from pipeline.ledger.outcome import OUTCOME_SCHEMA
from pipeline.storage.folder import Folder
from tests.builders.outcome_rows import accepted, failed, key, rejected, table_of
from tests.servers.stores import Store


@pytest.fixture
def folder(store: Store) -> Folder:
    return store.folder("run")


def test_an_empty_run_has_an_empty_ledger(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    assert ledger.done_ids() == set()
    assert ledger.counts() == LedgerCounts()
    assert list(ledger.outcomes()) == []


def test_what_is_committed_is_done_and_counted_now_and_after_reopening(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    first = table_of(accepted(1), failed(2), rejected(3, RejectReason.OFF_TARGET))
    second = table_of(failed(4, "nan_latent"), failed(5))
    ledger.commit(first)
    ledger.commit(second)
    for view in (ledger, Ledger.open(folder)):
        assert view.done_ids() == {key(n).edit_id for n in range(1, 6)}
        assert view.parts() == {"part-a"}
        assert [number_of(name) for name in view.files()] == [0, 1]
        assert view.counts() == LedgerCounts(
            accepted=1,
            rejected=1,
            failed=3,
            failed_by_code={"decode_failed": 2, "nan_latent": 1},
            rejected_by_reason={"off_target": 1},
            unet_rows=20.0,
            seconds=1.0,
        )
        assert view.counts().total == 5
        assert [table.to_pylist() for table in view.outcomes()] == [
            first.to_pylist(),
            second.to_pylist(),
        ]
    assert folder.list(".ledger") == [
        ".ledger/outcomes-00000000.parquet",
        ".ledger/outcomes-00000001.parquet",
    ]


def test_an_edit_enters_once(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    ledger.commit(table_of(accepted(1)))
    added = ledger.commit(table_of(failed(1), accepted(2), accepted(2, "part-b"), accepted(3)))
    assert added["edit_id"].to_pylist() == [key(2).edit_id, key(3).edit_id]
    assert ledger.commit(table_of(accepted(3))).num_rows == 0
    assert ledger.commit(table_of()).num_rows == 0
    assert len(folder.list(".ledger")) == 2
    ids = [i for table in ledger.outcomes() for i in table["edit_id"].to_pylist()]
    assert ids == [key(n).edit_id for n in (1, 2, 3)]
    assert ledger.counts() == Ledger.open(folder).counts()


def test_a_second_driver_stops_and_what_the_first_wrote_stays(folder: Folder) -> None:
    one, two = Ledger.open(folder), Ledger.open(folder)
    one.commit(table_of(accepted(1)))
    with pytest.raises(LedgerError, match=r"outcomes-00000000.*another run on this folder: stop"):
        two.commit(table_of(accepted(2)))
    assert two.done_ids() == set()
    assert Ledger.open(folder).done_ids() == {key(1).edit_id}
    one.commit(table_of(accepted(3)))
    assert len(Ledger.open(folder).done_ids()) == 2


def test_other_outcomes_than_ours_are_refused(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    with pytest.raises(ValueError, match="OUTCOME_SCHEMA"):
        ledger.commit(pa.table({"edit_id": [b"x"]}))
    assert folder.list() == []


@pytest.mark.parametrize("content", [b"P", b"PAR1 no more", None])
def test_a_damaged_file_is_named(folder: Folder, content: bytes | None) -> None:
    ledger = Ledger.open(folder)
    ledger.commit(table_of(accepted(1)))
    if content is None:
        sink = io.BytesIO()
        pq.write_table(pa.table({"something": [1]}), sink)
        content = sink.getvalue()
    folder.replace(".ledger/outcomes-00000001.parquet", content)
    with pytest.raises(LedgerError, match=r"outcomes-00000001\.parquet is damaged.*move it away"):
        Ledger.open(folder)


def test_a_file_of_zero_bytes_does_not_exist_and_its_number_is_free(
    folder: Folder, store: Store
) -> None:
    """As a write that failed leaves it, wherever it lies in the row."""
    store.put("run/.ledger/outcomes-00000000.parquet", b"")
    ledger = Ledger.open(folder)
    assert (ledger.files(), list(ledger.outcomes())) == ([], [])
    ledger.commit(table_of(accepted(1)))
    ledger.commit(table_of(accepted(2)))
    store.put("run/.ledger/outcomes-00000000.parquet", b"")  # as if it had never been written
    store.put("run/.ledger/outcomes-00000002.parquet", b"")
    again = Ledger.open(folder)
    assert again.done_ids() == {key(2).edit_id}
    again.commit(table_of(accepted(3)))
    assert [number_of(name) for name in again.files()] == [1, 2]
    assert Ledger.open(folder).done_ids() == {key(2).edit_id, key(3).edit_id}
    assert Ledger.open(folder).counts().accepted == 2


def test_a_fence_takes_the_number_of_a_file_of_zero_bytes(folder: Folder, store: Store) -> None:
    """It is the one that the old driver would take."""
    old = Ledger.open(folder)
    old.commit(table_of(accepted(1)))
    store.put("run/.ledger/outcomes-00000001.parquet", b"")
    assert fence(folder, 7) == ".ledger/outcomes-00000001.parquet"
    with pytest.raises(LedgerError, match="another run on this folder"):
        old.commit(table_of(accepted(2)))
    assert Ledger.open(folder).done_ids() == {key(1).edit_id}


def test_files_that_are_none_of_the_ledgers_are_left_alone(folder: Folder) -> None:
    folder.replace(".ledger/notes.txt", b"")
    folder.replace(".ledger/outcomes-x.parquet", b"")
    ledger = Ledger.open(folder)
    ledger.commit(table_of(accepted(1)))
    assert ledger.files() == [".ledger/outcomes-00000000.parquet"]


def test_a_gap_in_the_numbers_is_not_filled(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    ledger.commit(table_of(accepted(1)))
    folder.write_new(
        ".ledger/outcomes-00000007.parquet", folder.read(".ledger/outcomes-00000000.parquet")
    )
    again = Ledger.open(folder)
    again.commit(table_of(accepted(2)))
    assert [number_of(name) for name in again.files()] == [0, 7, 8]


def test_behind_a_fence_an_old_driver_cannot_commit(folder: Folder) -> None:
    old = Ledger.open(folder)
    old.commit(table_of(accepted(1)))
    assert fence(folder, 7) == ".ledger/outcomes-00000001.parquet"
    with pytest.raises(LedgerError, match="another run on this folder"):
        old.commit(table_of(accepted(2)))
    new = Ledger.open(folder)
    new.commit(table_of(accepted(3)))
    assert Ledger.open(folder).done_ids() == {key(1).edit_id, key(3).edit_id}
    assert Ledger.open(folder).counts().total == 2


def test_a_fence_says_whose_it_is_and_has_the_schema_of_all_ledger_files(folder: Folder) -> None:
    schema = pq.read_schema(io.BytesIO(folder.read(fence(folder, 7))))
    assert schema.metadata[b"fpe.fence"] == b"7"
    assert schema.remove_metadata().equals(OUTCOME_SCHEMA)


def test_the_last_commit_before_a_fence_is_still_looked_at_for_halves(folder: Folder) -> None:
    """A killed run can leave a part of which one commit took half; the takeover adds a fence."""
    ledger = Ledger.open(folder)
    ledger.commit(table_of(accepted(1, "part-a")))
    ledger.commit(table_of(accepted(2, "part-b")))
    fence(folder, 2)
    assert Ledger.open(folder).settled_parts() == {"part-a"}


class Lost:
    """A right that was lost."""

    def check(self) -> None:
        raise LeaseError("somebody else has it")


def test_without_the_right_nothing_is_committed(folder: Folder) -> None:
    ledger = Ledger.open(folder, Lost())
    with pytest.raises(LeaseError):
        ledger.commit(table_of(accepted(1)))
    assert folder.list() == []
    assert ledger.done_ids() == set()


def test_a_failed_edit_enters_again_where_it_was_reopened(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    first = table_of(accepted(1), failed(2), failed(3, "nan_latent"), failed(4))
    ledger.commit(first)
    assert ledger.commit(table_of(failed(2, "nan_latent"))).num_rows == 0
    ledger.reopen(ledger.failed_ids(["decode_failed"]))
    second = table_of(accepted(2, "part-b"), failed(4, "source_missing"))
    added = ledger.commit(table_of(accepted(1), failed(3)))
    assert added.num_rows == 0, "neither was reopened"
    assert ledger.commit(second).num_rows == 2
    assert ledger.commit(second).num_rows == 0, "once is once"
    for view in (ledger, Ledger.open(folder)):
        counts = view.counts()
        assert (counts.accepted, counts.failed, counts.total) == (2, 2, 4)
        assert dict(counts.failed_by_code) == {"nan_latent": 1, "source_missing": 1}
        assert view.failed_ids() == {key(3).edit_id, key(4).edit_id}
        assert view.failed_ids(["source_missing", "nan_latent"]) == view.failed_ids()
        assert view.failed_ids(["decode_failed"]) == frozenset()
        assert view.done_ids() == {key(n).edit_id for n in (1, 2, 3, 4)}
        assert view.parts() == {"part-a", "part-b"}
        assert (counts.unet_rows, counts.seconds) == (20.0, 1.0)
    history = [table.to_pylist() for table in Ledger.open(folder).outcomes()]
    assert history == [first.to_pylist(), second.to_pylist()]


def test_only_failed_edits_can_be_reopened(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    ledger.commit(table_of(accepted(1), rejected(2)))
    for number in (1, 2, 3):
        with pytest.raises(ValueError, match="whose standing outcome is failed"):
            ledger.reopen(frozenset([key(number).edit_id]))


def test_a_better_outcome_needs_no_reopening(folder: Folder) -> None:
    """Of a part that was finished although its edits count as failed."""
    ledger = Ledger.open(folder)
    ledger.commit(table_of(failed(1, "write_failed"), failed(2)))
    better = table_of(accepted(1), failed(2))
    assert ledger.lacks(better) == [True, False]
    assert ledger.commit(better).num_rows == 1
    assert ledger.lacks(better) == [False, False]
    assert ledger.failed_ids() == {key(2).edit_id}


def test_a_ledger_of_0_1_is_counted_and_read_in_the_words_of_now(folder: Folder) -> None:
    refused = key(1).rejected(RejectReason.SOURCE_NOT_RECONSTRUCTED, unet_rows=0, seconds=0)
    now = table_of(refused, accepted(2))
    column = now.column_names.index("reason")
    of_0_1 = now.set_column(
        column, OUTCOME_SCHEMA.field("reason"), pa.array(["source_not_reproduced", ""])
    ).append_column("inversion_psnr_db", pa.array([18.5, None], pa.float64()))
    sink = io.BytesIO()
    pq.write_table(of_0_1, sink)
    folder.write_new(".ledger/outcomes-00000000.parquet", sink.getvalue())
    ledger = Ledger.open(folder)
    assert ledger.counts().rejected_by_reason == {"source_not_reconstructed": 1}
    (read,) = ledger.outcomes()
    assert read.equals(now)

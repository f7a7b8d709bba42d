"""The ledger: what is committed stays, once."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LedgerError
from pipeline.ledger import (
    Ledger,
    LedgerCounts,
    adopt_orphan_parts,
    orphan_parts,
    read_part_outcomes,
)
from pipeline.outcome import (
    OUTCOME_SCHEMA,
    OUTCOMES_METADATA_KEY,
    RejectReason,
    outcomes_to_bytes,
)
from pipeline.storage import Folder
from tests.pipeline.outcome_rows import accepted, failed, key, rejected, table_of


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder.open(str(tmp_path / "run"))
    return Folder.open(f"memory://{tmp_path.name}-{id(request)}/run")


def write_part(
    folder: Folder, part: str, outcomes: pa.Table, *, with_outcomes: bool = True
) -> None:
    """metadata.parquet as the writer leaves it."""
    rows = [row for row in outcomes.to_pylist() if row["part"]]
    metadata = pa.table(
        {
            "edited_file_name": [row["edited_file_name"].removeprefix(f"{part}/") for row in rows],
            "edit_id": [row["edit_id"].hex() for row in rows],
            "group_id": [row["group_id"].hex() for row in rows],
            "source_id": [row["source_id"].hex() for row in rows],
            "target_prompt": [row["target_prompt"] for row in rows],
        }
    )
    if with_outcomes:
        stored = {OUTCOMES_METADATA_KEY: outcomes_to_bytes(outcomes)}
        metadata = metadata.replace_schema_metadata(stored)
    sink = io.BytesIO()
    pq.write_table(metadata, sink)
    folder.write_new(f"{part}/metadata.parquet", sink.getvalue())


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
        assert view.next_number == 2
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


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", None])
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


def test_files_that_are_none_of_the_ledgers_are_left_alone(folder: Folder) -> None:
    folder.replace(".ledger/notes.txt", b"")
    folder.replace(".ledger/outcomes-x.parquet", b"")
    assert Ledger.open(folder).next_number == 0


def test_a_gap_in_the_numbers_is_not_filled(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    ledger.commit(table_of(accepted(1)))
    folder.write_new(
        ".ledger/outcomes-00000007.parquet", folder.read(".ledger/outcomes-00000000.parquet")
    )
    assert Ledger.open(folder).next_number == 8


def test_a_part_that_was_not_committed_is_adopted_with_all_its_outcomes(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    committed = table_of(accepted(1, "part-a"))
    write_part(folder, "part-a", committed)
    ledger.commit(committed)
    lost = table_of(accepted(2, "part-b"), failed(3), accepted(4, "part-b"))
    write_part(folder, "part-b", lost)
    folder.write_new("part-c/edited/5.png", b"an image of a part that was never finished")
    assert [part for part, _ in orphan_parts(folder, ledger)] == ["part-b"]

    assert adopt_orphan_parts(folder, ledger) == 3

    assert Ledger.open(folder).done_ids() == {key(n).edit_id for n in (1, 2, 3, 4)}
    assert list(ledger.outcomes())[1].to_pylist() == lost.to_pylist()
    assert list(orphan_parts(folder, ledger)) == []
    assert adopt_orphan_parts(folder, ledger) == 0
    assert len(folder.list(".ledger")) == 2


def test_a_part_that_was_committed_by_half_is_completed(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    ledger.commit(table_of(accepted(1, "part-a")))
    outcomes = table_of(accepted(2, "part-b"), accepted(3, "part-b"))
    write_part(folder, "part-b", outcomes)
    ledger.commit(outcomes.slice(0, 1))
    assert adopt_orphan_parts(folder, Ledger.open(folder)) == 1
    assert Ledger.open(folder).done_ids() == {key(n).edit_id for n in (1, 2, 3)}


def test_edits_that_are_done_elsewhere_are_not_adopted_again(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    ledger.commit(table_of(accepted(1, "part-a")))
    write_part(folder, "part-b", table_of(accepted(1, "part-b"), accepted(2, "part-b")))
    assert adopt_orphan_parts(folder, ledger) == 1
    assert ledger.counts().accepted == 2


def test_metadata_without_outcomes_gives_the_accepted_ones(folder: Folder) -> None:
    outcomes = table_of(accepted(1, "part-a"), failed(2))
    write_part(folder, "part-a", outcomes, with_outcomes=False)
    found = read_part_outcomes(folder, "part-a")
    assert found.schema.equals(OUTCOME_SCHEMA)
    [row] = found.to_pylist()
    expected = outcomes.to_pylist()[0] | {"row": -1, "unet_rows": 0.0, "seconds": 0.0}
    assert row == expected


def test_metadata_of_zero_bytes_finishes_no_part(folder: Folder) -> None:
    folder.replace("part-a/metadata.parquet", b"")
    assert adopt_orphan_parts(folder, Ledger.open(folder)) == 0
    write_part(folder, "part-a", table_of(accepted(1, "part-a")))
    assert adopt_orphan_parts(folder, Ledger.open(folder)) == 1


@pytest.mark.parametrize("content", [b"PAR1", None])
def test_damaged_metadata_is_named(folder: Folder, content: bytes | None) -> None:
    if content is None:
        sink = io.BytesIO()
        pq.write_table(pa.table({"edit_id": ["not hexadecimal"]}), sink)
        content = sink.getvalue()
    folder.write_new("part-a/metadata.parquet", content)
    with pytest.raises(LedgerError, match=r"part-a/metadata\.parquet is damaged"):
        adopt_orphan_parts(folder, Ledger.open(folder))

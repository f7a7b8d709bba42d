"""What a crash leaves behind, and how the next run mends it."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LedgerError
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import OUTCOMES_METADATA_KEY, outcomes_to_bytes
from pipeline.ledger.parts import adopt_orphan_parts, orphan_parts
from pipeline.storage.folder import Folder
from tests.builders.outcome_rows import accepted, failed, key, table_of
from tests.servers.stores import Store


@pytest.fixture
def folder(store: Store) -> Folder:
    return store.folder("run")


def write_part(folder: Folder, part: str, outcomes: pa.Table) -> None:
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
    stored = {OUTCOMES_METADATA_KEY: outcomes_to_bytes(outcomes)}
    sink = io.BytesIO()
    pq.write_table(metadata.replace_schema_metadata(stored), sink)
    folder.write_new(f"{part}/metadata.parquet", sink.getvalue())


def test_a_part_that_was_not_committed_is_adopted_with_all_its_outcomes(folder: Folder) -> None:
    ledger = Ledger.open(folder)
    committed = table_of(accepted(1, "part-a"))
    write_part(folder, "part-a", committed)
    ledger.commit(committed)
    lost = table_of(accepted(2, "part-b"), failed(3), accepted(4, "part-b"))
    write_part(folder, "part-b", lost)
    folder.write_new("part-c/edited/5.png", b"an image of a part that was never finished")
    assert [part for part, _ in orphan_parts(folder, ledger)] == ["part-b"]

    told: list[pa.Table] = []
    assert adopt_orphan_parts(folder, ledger, told.append) == 3
    assert [table.to_pylist() for table in told] == [lost.to_pylist()]

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


def test_a_retry_that_was_killed_before_its_commit_is_adopted(folder: Folder) -> None:
    """Its part is finished; the second failure of an edit in it is no news."""
    ledger = Ledger.open(folder)
    first = table_of(accepted(1, "part-a"), failed(2), failed(3))
    write_part(folder, "part-a", first)
    ledger.commit(first)
    again = table_of(accepted(2, "part-b"), failed(3, "nan_latent"))
    write_part(folder, "part-b", again)
    ledger.reopen(ledger.failed_ids())
    [(part, outcomes)] = orphan_parts(folder, ledger)
    assert (part, outcomes["edit_id"].to_pylist()) == ("part-b", [key(2).edit_id])
    assert adopt_orphan_parts(folder, Ledger.open(folder)) == 1
    after = Ledger.open(folder)
    assert dict(after.counts().failed_by_code) == {"decode_failed": 1}
    assert after.failed_ids() == {key(3).edit_id}
    assert list(orphan_parts(folder, after)) == []

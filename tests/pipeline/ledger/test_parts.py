"""What a crash leaves behind, and how the next run mends it."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LedgerError
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.parts import (
    adopt_orphan_parts,
    image_hashes,
    orphan_parts,
    read_part_outcomes,
    write_outcomes,
)
from pipeline.storage.folder import Folder
from pipeline.write.part import encode_metadata
from tests.builders.outcome_rows import accepted, failed, key, table_of
from tests.builders.part_of_0_2 import metadata_of_0_2
from tests.servers.stores import Store


@pytest.fixture
def folder(store: Store) -> Folder:
    return store.folder("run")


def write_part(folder: Folder, part: str, outcomes: pa.Table, *, is_of_0_2: bool = False) -> None:
    """Outcomes and metadata.parquet as the writer leaves them."""
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
    if is_of_0_2:
        data = metadata_of_0_2(metadata, outcomes)
    else:
        data = encode_metadata(metadata, write_outcomes(folder, part, outcomes, {}))
    folder.write_new(f"{part}/metadata.parquet", data)


@pytest.mark.parametrize("is_of_0_2", [False, True])
def test_a_part_that_was_not_committed_is_adopted_with_all_its_outcomes(
    folder: Folder, is_of_0_2: bool
) -> None:
    ledger = Ledger.open(folder)
    committed = table_of(accepted(1, "part-a"))
    write_part(folder, "part-a", committed)
    ledger.commit(committed)
    lost = table_of(accepted(2, "part-b"), failed(3), accepted(4, "part-b"))
    write_part(folder, "part-b", lost, is_of_0_2=is_of_0_2)
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


def test_the_outcomes_of_a_part_are_found_by_their_hash(folder: Folder) -> None:
    """Two attempts at a part leave two files; the metadata names that of its own attempt."""
    first, second = table_of(accepted(1, "part-a"), failed(2)), table_of(accepted(1, "part-a"))
    image = first["edited_file_name"][0].as_py()
    write_outcomes(folder, "part-a", second, {})
    record = write_outcomes(folder, "part-a", first, {image: b"x" * 16})
    folder.write_new("part-a/metadata.parquet", encode_metadata(pa.table({"a": [1]}), record))
    assert len(folder.list(".outcomes")) == 2
    assert read_part_outcomes(folder, "part-a").equals(first)
    assert image_hashes(folder, "part-a") == {image: b"x" * 16}


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_outcomes_that_are_damaged_are_named(folder: Folder, damage: str) -> None:
    write_part(folder, "part-a", table_of(accepted(1, "part-a")))
    (path,) = folder.list(".outcomes")
    if damage == "missing":
        folder.fs.rm_file(folder.path_of(path))
    else:
        folder.replace(path, folder.read(path)[:-1] + b"x")
    with pytest.raises(LedgerError, match=rf"{path.replace('.', '[.]')} is {damage[:7]}|damaged"):
        adopt_orphan_parts(folder, Ledger.open(folder))

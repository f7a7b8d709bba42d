"""Rows by id on disk: equal ids meet in a bucket and keep their order; buckets are sorted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.ledger.by_id
from pipeline.ledger.by_id import BUCKETS, RowsById, is_again, numbered
from pipeline.ledger.outcome import ID_TYPE

SCHEMA = pa.schema([pa.field("edit_id", ID_TYPE), pa.field("text", pa.string())])
ids = st.builds(
    lambda first, last: bytes([first]) + b"\0" * 14 + bytes([last]),
    st.sampled_from([0, 1, 127, 255]),
    st.integers(0, 3),
)
rows = st.lists(st.tuples(ids, st.text(max_size=3)), max_size=20)


def table_of(some: list[tuple[bytes, str]]) -> pa.Table:
    return pa.table([[i for i, _ in some], [text for _, text in some]], schema=SCHEMA)


@pytest.mark.parametrize("waiting", [1, 7, 1 << 16])
@given(added=st.lists(rows, max_size=4))
def test_rows_come_back_by_id_in_their_order(
    waiting: int, added: list[list[tuple[bytes, str]]]
) -> None:
    with pytest.MonkeyPatch.context() as patch, RowsById(SCHEMA) as by_id:
        patch.setattr(pipeline.ledger.by_id, "_WAITING_ROWS", waiting)
        for some in added:
            by_id.add(table_of(some))
        buckets = list(by_id.buckets())
        assert [each.num_rows for each in by_id.buckets()] == [each.num_rows for each in buckets]
    assert len(buckets) == BUCKETS
    found = [(row["edit_id"], row["text"]) for bucket in buckets for row in bucket.to_pylist()]
    together = [row for some in added for row in some]
    assert [i[0] for i, _ in found] == sorted(i[0] for i, _ in together)
    for identity in {i for i, _ in together}:
        mine = [text for i, text in together if i == identity]
        assert [text for i, text in found if i == identity] == mine


@given(rows, rows)
def test_numbers_are_places_among_the_different_ids(
    a: list[tuple[bytes, str]], b: list[tuple[bytes, str]]
) -> None:
    different, (in_a, in_b) = numbered(table_of(a), table_of(b))
    assert list(different) == sorted({i for i, _ in [*a, *b]})
    assert [different[place] for place in in_a] == [i for i, _ in a]
    assert [different[place] for place in in_b] == [i for i, _ in b]


@given(st.lists(st.integers(0, 5), max_size=20))
def test_repetitions_are_told_with_the_row_before(places: list[int]) -> None:
    again, before = is_again(np.array(places, np.int64))
    expected = {}
    last: dict[int, int] = {}
    for row, place in enumerate(places):
        if place in last:
            expected[row] = last[place]
        last[place] = row
    assert dict(zip(again.tolist(), before.tolist(), strict=True)) == expected


def test_the_file_is_gone_at_its_end() -> None:
    with RowsById(SCHEMA) as by_id:
        folder = Path(by_id._folder.name)
        assert list(folder.iterdir())
    assert not folder.exists()

"""Compact sets of ids answer as Python's sets do, and what comes twice is found, on disk too."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.ledger.id_set
from pipeline.ledger.id_set import ID_BYTES, IdSet, RepeatFinder, which_are_in


def an_id(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=ID_BYTES).digest()


few = st.integers(0, 40).map(an_id)
alike = st.tuples(
    st.sampled_from([b"\0" * 8, b"\xff" * 8]), st.sampled_from([b"a", b"b", b"c"])
).map(lambda halves: halves[0] + halves[1] * 8)
"""Ids with the same first half, which hashes hardly ever are."""
ids = st.lists(few | alike, max_size=30)


@pytest.mark.parametrize("merged_at_once", [1, 3, 10_000])
@given(added=st.lists(ids, max_size=6), asked=ids)
def test_it_holds_what_a_set_would(
    merged_at_once: int, added: list[list[bytes]], asked: list[bytes]
) -> None:
    compact, plain = IdSet(), set[bytes]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.ledger.id_set, "_MERGED_AT_ONCE", merged_at_once)
        for some in added:
            compact.update(some)
            plain.update(some)
    assert len(compact) == len(plain)
    assert set(compact) == plain
    assert compact.has(asked) == [each in plain for each in asked]
    assert which_are_in(asked, compact) == which_are_in(asked, plain)
    assert all((each in compact) == (each in plain) for each in asked)
    assert compact == plain
    assert frozenset(asked) - compact == set(asked) - plain
    assert (frozenset(asked) <= compact) == (set(asked) <= plain)


@given(ids)
def test_equal_sets_have_equal_digests(some: list[bytes]) -> None:
    at_once, one_by_one = IdSet(some), IdSet()
    for each in reversed(some):
        one_by_one.update([each])
    assert at_once.digest() == one_by_one.digest()
    assert IdSet([*some, an_id(99)]).digest() != at_once.digest()


def test_many_small_additions_make_few_arrays() -> None:
    compact = IdSet()
    for number in range(1000):
        compact.update([an_id(number)])
    assert len(compact) == 1000
    assert len(compact._runs) <= 10  # each more than twice the next


def test_merging_takes_hardly_more_memory_than_the_ids() -> None:
    """What it held before, what it holds then, and one piece of work."""
    count = 1 << 18
    rng = np.random.default_rng(0)
    compact, more = IdSet(), IdSet()
    for some in (compact, more):
        whole = rng.bytes(ID_BYTES * count)
        some.update(whole[at : at + ID_BYTES] for at in range(0, len(whole), ID_BYTES))
    compact._runs += more._runs
    tracemalloc.start()
    try:
        compact.compact()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    result = 2 * count * ID_BYTES
    assert len(compact._runs) == 1
    assert len(compact) == 2 * count
    assert result <= peak <= 1.5 * result
    highs = compact._runs[0][0]
    assert (highs[1:] >= highs[:-1]).all()


def test_what_is_no_id_is_refused_and_not_in() -> None:
    compact = IdSet([an_id(1)])
    assert b"short" not in compact
    assert "text" not in compact
    with pytest.raises(ValueError, match="16 bytes"):
        compact.update([b"short"])


@pytest.mark.parametrize("buffered", [1, 7, 10_000])
@given(some=ids)
def test_repetitions_are_found(buffered: int, some: list[bytes]) -> None:
    """In memory, on disk, and with some in both."""
    counts = Counter(some)
    with pytest.MonkeyPatch.context() as patch, RepeatFinder() as finder:
        patch.setattr(pipeline.ledger.id_set, "_BUFFERED_IDS", buffered)
        for each in some:
            finder.add(each)
        different, repeated = finder.finish()
    assert different == len(counts)
    assert repeated == {each for each, count in counts.items() if count > 1}


def test_its_files_are_gone_at_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline.ledger.id_set, "_BUFFERED_IDS", 4)
    with RepeatFinder() as finder:
        for number in range(20):
            finder.add(an_id(number))
        assert finder._folder is not None
        folder = pipeline.ledger.id_set.Path(finder._folder.name)
        assert len(list(folder.iterdir())) > 1
    assert not folder.exists()

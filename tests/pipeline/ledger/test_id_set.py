"""Compact sets of ids answer as Python's sets do, and what comes twice is found, on disk too."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.ledger.id_set
from pipeline.ledger.id_set import (
    ID_BYTES,
    IdMap,
    IdSet,
    RepeatFinder,
    packed_ids,
    which_are_in,
)


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


MERGE = """
import re, sys
from pathlib import Path
import numpy as np
from pipeline.ledger.id_set import ID_BYTES, IdMap

def kilobytes(key):
    return int(re.search(rf"{key}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

count, rng, parts = 1 << 19, np.random.default_rng(0), []
for number in range(2):
    part = IdMap(np.uint8)
    part.put(rng.bytes(ID_BYTES * count), number)
    parts.append(part)
first, second = parts
first._runs += second._runs
second._runs = []
before = kilobytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM is the peak from here on
first.compact()
[(highs, lows, numbers)] = first._runs
assert len(first) == 2 * count == len(numbers)
assert (highs[1:] >= highs[:-1]).all() and numbers.sum() == count
print(1024 * (kilobytes("VmHWM") - before) / (2 * count * (ID_BYTES + 1)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_merging_takes_hardly_more_memory_than_the_ids() -> None:
    """The peak grows by a piece of work, not by the result, in a process of its own.

    The C library gives back at once what is cut off an array that it has mapped; without the
    variable those are arrays of more than 32 MB, or four million ids.
    """
    mapped = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", MERGE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=mapped)
    assert float(done.stdout) < 0.5


numbered = st.lists(st.tuples(few | alike, st.integers(0, 200)), max_size=30)


@pytest.mark.parametrize("merged_at_once", [1, 3, 10_000])
@given(put=st.lists(numbered, max_size=6), asked=ids)
def test_a_map_holds_what_a_dict_would(
    merged_at_once: int, put: list[list[tuple[bytes, int]]], asked: list[bytes]
) -> None:
    compact, plain = IdMap(np.uint8), dict[bytes, int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.ledger.id_set, "_MERGED_AT_ONCE", merged_at_once)
        for some in put:
            compact.put(b"".join(each for each, _ in some), [number for _, number in some])
            plain.update(some)
    assert dict(compact.items()) == plain
    assert compact == plain.keys()
    assert compact.get(b"".join(asked), absent=-1).tolist() == [plain.get(i, -1) for i in asked]
    assert [compact.number_of(each) for each in asked] == [plain.get(each) for each in asked]
    odd = compact.where(lambda numbers: numbers % 2 == 1)
    assert odd == {each for each, number in plain.items() if number % 2}
    compact.compact()
    assert b"".join(compact.packed()) == b"".join(sorted(plain))


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_ids_of_a_table_are_packed(chunks: int) -> None:
    """Also of a slice, and of a column in several pieces."""
    column = pa.array([an_id(number) for number in range(5)], pa.binary(ID_BYTES))
    pieces = pa.chunked_array([column.slice(1, 3)] * chunks, column.type)
    expected = b"".join(an_id(number) for number in (1, 2, 3)) * chunks
    assert packed_ids(pa.table({"edit_id": pieces})) == expected


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

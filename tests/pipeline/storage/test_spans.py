"""Announced ranges of a file are fetched once, in few requests, and all else is read as well."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence

import pytest

from pipeline.storage.spans import WHOLE_FILE_BYTES, SpanFile

MIB = 1 << 20
CONTENT = b"".join(number.to_bytes(4, "big") for number in range(8 * MIB // 4))


class Journal(io.BytesIO):
    """A file that notes what is read of it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.ranges: list[tuple[int, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size > 0
        self.ranges.append((self.tell(), self.tell() + size))
        return super().read(size)

    @property
    def fetched(self) -> int:
        return sum(end - first for first, end in self.ranges)


def in_turns(ranges: Sequence[tuple[int, int]], step: int) -> Iterator[tuple[int, int]]:
    """A bit of each range in turns, as the columns of a row group are read."""
    for offset in range(0, max(end - first for first, end in ranges), step):
        for first, end in ranges:
            if first + offset < end:
                yield first + offset, min(end, first + offset + step)


@pytest.mark.parametrize("columns", [1, 2, 6, 300])
@pytest.mark.parametrize("step", [1000, 70_000])
def test_every_byte_is_fetched_once(columns: int, step: int) -> None:
    journal = Journal(CONTENT)
    file = SpanFile(journal)
    size = (len(CONTENT) - 70_000) // columns
    ranges = [(4 + n * size, 4 + (n + 1) * size) for n in range(columns)]
    file.announce(ranges, columns)
    for first, end in in_turns(ranges, step):
        file.seek(first)
        assert file.read(end - first) == CONTENT[first:end]
    assert journal.fetched <= 1.02 * columns * size
    assert len(journal.ranges) <= 2 * columns + 40
    assert all(span.data is None for span in file._spans[:-1])  # what was read is dropped


def test_a_span_is_fetched_while_the_one_before_it_is_read() -> None:
    ahead = threading.Event()

    class Watched(Journal):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() == 4 * MIB:
                ahead.set()
            return super().read(size)

    with SpanFile(Watched(CONTENT)) as file:
        file.announce([(0, 6 * MIB)], 1)
        assert file.read(10) == CONTENT[:10]
        assert ahead.wait(60), "the second span, of which nothing was asked for yet"
        file.seek(10)
        assert file.read(6 * MIB - 10) == CONTENT[10 : 6 * MIB]


def test_what_cannot_be_fetched_ahead_is_an_error_where_it_is_read() -> None:
    class Failing(Journal):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() == 4 * MIB:
                raise OSError("the store is gone")
            return super().read(size)

    with SpanFile(Failing(CONTENT)) as file:
        file.announce([(0, 6 * MIB)], 1)
        assert file.read(4 * MIB) == CONTENT[: 4 * MIB]
        with pytest.raises(OSError, match="the store is gone"):
            file.read(10)


def test_many_small_ranges_share_requests_and_far_ones_are_left_out() -> None:
    journal = Journal(CONTENT)
    file = SpanFile(journal)
    near = [(n * 2000, n * 2000 + 1500) for n in range(1000)]
    far = [(4 * MIB + n * 300_000, 4 * MIB + n * 300_000 + 1000) for n in range(10)]
    file.announce([*near, *far], 1)
    for first, end in [*near, *far]:
        file.seek(first)
        assert file.read(end - first) == CONTENT[first:end]
    assert len(journal.ranges) == 1 + len(far)
    assert journal.fetched < 2000 * 1000 + 1000 * len(far)


def test_a_small_file_is_one_request() -> None:
    journal = Journal(CONTENT[:WHOLE_FILE_BYTES])
    file = SpanFile(journal)
    file.seek(-8, io.SEEK_END)
    assert file.read(8) == CONTENT[WHOLE_FILE_BYTES - 8 : WHOLE_FILE_BYTES]
    file.announce([(4, 1000), (1000, WHOLE_FILE_BYTES - 8)], 2)
    for _ in range(2):
        file.seek(4)
        assert file.read(WHOLE_FILE_BYTES) == CONTENT[4:WHOLE_FILE_BYTES]
    assert journal.ranges == [(0, WHOLE_FILE_BYTES)]


def test_what_nobody_announced_is_read_as_it_is_asked_for() -> None:
    journal = Journal(CONTENT)
    file = SpanFile(journal)
    file.seek(-8, io.SEEK_END)
    assert file.read(8) == CONTENT[-8:]
    assert journal.fetched < 100_000  # of a large file the end, where the footer is
    file.announce([(1000, 2000)], 1)
    file.seek(500)
    assert file.read(3000) == CONTENT[500:3500]
    assert file.tell() == 3500
    file.seek(1500)  # announced, but read already
    assert file.read(10) == CONTENT[1500:1510]
    file.seek(0, io.SEEK_END)
    assert file.read(10) == b""


def test_a_file_that_shrinks_ends_early() -> None:
    journal = Journal(CONTENT)
    file = SpanFile(journal)
    journal.truncate(MIB)
    file.announce([(0, 2 * MIB)], 1)
    assert file.read(2 * MIB) == CONTENT[:MIB]

"""A file of a store that is read by pieces which were announced, each with one request.

A reader of a column format asks for a file in small reads that jump from column to column. A client
that reads ahead fetches the same bytes again after every jump; one that does not sends a request
for every read. Here the reader says beforehand which ranges it will read. They are cut and put
together into spans: a span is fetched at its first read, and dropped when all of it was read. While
one is read, a thread fetches the one behind it, so that the reader and the store do not wait for
each other.
"""

from __future__ import annotations

import bisect
import io
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

WHOLE_FILE_BYTES = 1 << 20
"""A file of this size or less is one span: a second request takes longer than its bytes."""
_TAIL_BYTES = 1 << 16
"""What pyarrow reads of the end of a Parquet file to find its footer."""
_HOLE_BYTES = 1 << 14
"""Ranges with no more than this between them are fetched together, and the hole with them."""
_SPAN_MOST_BYTES = 4 << 20
_SPAN_LEAST_BYTES = 1 << 18
_NEVER = 1 << 62
"""The bytes left to read of a span that is never dropped."""
_MEMORY_BYTES = 64 << 20
"""What the spans of ranges that are read in turns may take, those fetched ahead included; with very
many of them it is more."""

Range: TypeAlias = tuple[int, int]
"""The first byte of a piece of a file, and the one after its last."""


@dataclass
class _Span:
    first: int
    end: int
    left: int
    """How many of its announced bytes were not read yet."""
    data: bytes | None = None
    coming: Future[bytes] | None = None


def _cut(ranges: Iterable[Range], most_bytes: int) -> list[_Span]:
    """Ranges as they are fetched: neighbours together, and none longer than `most_bytes`."""
    spans: list[_Span] = []
    for first, end in sorted(ranges):
        last = spans[-1] if spans else None
        if last and first - last.end <= _HOLE_BYTES and end - last.first <= most_bytes:
            last.end, last.left = end, last.left + end - first
            continue
        for at in range(first, end, most_bytes):
            until = min(end, at + most_bytes)
            spans.append(_Span(at, until, until - at))
    return spans


class SpanFile(io.RawIOBase):
    """A file, open for reading, that is fetched in spans.

    The end of the file, or all of a small one, is the first span. What was not announced is fetched
    as it is asked for. Every announced byte is expected to be read once. To be used by one thread.
    """

    def __init__(self, file: BinaryIO) -> None:
        """`file`: every read of it is one request for exactly the bytes that are read."""
        super().__init__()
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        self._at = 0
        self._fetching = threading.Lock()
        self._ahead: ThreadPoolExecutor | None = None
        first = 0 if self.size <= WHOLE_FILE_BYTES else self.size - _TAIL_BYTES
        self._spans = [_Span(first, self.size, _NEVER)]

    def announce(self, ranges: Sequence[Range], in_turns: int) -> None:
        """Says what is read from now on, once: ranges that do not overlap.

        `in_turns`: of how many of them a bit is read in turns.
        """
        (tail,) = self._spans
        cut = ((max(0, first), min(end, tail.first)) for first, end in ranges)
        most_bytes = max(
            _SPAN_LEAST_BYTES, min(_SPAN_MOST_BYTES, _MEMORY_BYTES // max(1, 2 * in_turns))
        )
        self._spans = [*_cut((each for each in cut if each[0] < each[1]), most_bytes), tail]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self.size, self._at + len(buffer))
        done = 0
        while self._at < end:
            piece = self._piece(self._at, end)
            if not piece:
                break  # cut short since it was opened; the reader says what it lacks
            buffer[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    def _piece(self, first: int, end: int) -> bytes | memoryview:
        """The bytes from `first` on, up to `end` or to where a span begins or is over."""
        place = bisect.bisect_right(self._spans, first, key=lambda span: span.first) - 1
        span = self._spans[place] if place >= 0 else None
        if span is None or first >= span.end or not span.left:
            if place + 1 < len(self._spans):
                end = min(end, self._spans[place + 1].first)
            return self._fetch(first, end)
        if span.data is None:
            coming, span.coming = span.coming, None
            span.data = self._fetch(span.first, span.end) if coming is None else coming.result()
            self._fetch_ahead(place + 1)
        piece = memoryview(span.data)[first - span.first : end - span.first]
        span.left = max(0, span.left - len(piece))
        if not span.left:
            span.data = None
        return piece

    def _fetch_ahead(self, place: int) -> None:
        """Begins to fetch a span, unless it was fetched, or is the end of the file."""
        if place >= len(self._spans) - 1:
            return
        span = self._spans[place]
        if span.left and span.data is None and span.coming is None:
            if self._ahead is None:
                self._ahead = ThreadPoolExecutor(1, thread_name_prefix="span")
            span.coming = self._ahead.submit(self._fetch, span.first, span.end)

    def _fetch(self, first: int, end: int) -> bytes:
        with self._fetching:
            self._file.seek(first)
            return self._file.read(end - first)

    def close(self) -> None:
        """Waits for a piece that is being fetched. The file stays open."""
        if self._ahead is not None:
            self._ahead.shutdown(cancel_futures=True)
        super().close()

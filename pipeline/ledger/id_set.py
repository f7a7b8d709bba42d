"""Sets of ids that take 16 bytes an id, and ids on disk: what a run of millions remembers.

A Python set of ids takes some 110 bytes for each. `IdSet` has them sorted in arrays and answers for
many at once; `RepeatFinder` finds those that come twice and holds none of the others.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Container, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

import numpy as np
import numpy.typing as npt

_Halves: TypeAlias = npt.NDArray[np.uint64]
"""(2, n): ids as two numbers each, the high ones in the first row. A search wants them in a row: of
a column numpy would make a copy for every question."""
_HALF = np.dtype(">u8")
_BUCKETS = 64
_BUFFERED_IDS = 1 << 16
_MERGED_AT_ONCE = 1 << 14


def _halves(ids: Sequence[bytes]) -> _Halves:
    together = b"".join(ids)
    if len(together) != ID_BYTES * len(ids):
        raise ValueError(f"an id has {ID_BYTES} bytes")
    return _from_bytes(np.frombuffer(together, _HALF))


def _from_bytes(halves: npt.NDArray[Any]) -> _Halves:
    return np.ascontiguousarray(halves.astype(np.uint64).reshape(-1, 2).T)


def _bytes(halves: _Halves) -> bytes:
    return halves.T.astype(_HALF).tobytes()


def _sorted(halves: _Halves) -> _Halves:
    return halves[:, np.lexsort((halves[1], halves[0]))]


def _is_again(ordered: _Halves) -> npt.NDArray[np.bool_]:
    """Of sorted ids, from the second on, whether it is the one before."""
    return np.asarray((ordered[:, 1:] == ordered[:, :-1]).all(axis=0))


class IdSet(AbstractSet[bytes]):
    """Ids of 16 bytes in sorted arrays. It can grow and forgets nothing.

    The arrays double in size like a binary counter, so an id is moved log n times, and while two
    become one, both and the result are in memory.
    """

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self._runs: list[_Halves] = []
        self.update(ids)

    def update(self, ids: Iterable[bytes]) -> None:
        """Adds ids, best many at once. Raises ValueError for one that is not of 16 bytes."""
        added = _sorted(_halves(list(ids)))
        is_new = ~self._has(added)
        is_new[1:] &= ~_is_again(added)
        if is_new.any():
            self._runs.append(added[:, is_new])
        while len(self._runs) > 1 and self._runs[-2].shape[1] <= 2 * self._runs[-1].shape[1]:
            self._merge(2)

    def compact(self) -> None:
        """Into one array: then a question about one id takes microseconds."""
        if len(self._runs) > 1:
            self._merge(len(self._runs))

    def _merge(self, last: int) -> None:
        """Piece by piece, so that it takes the result's memory and hardly more."""
        runs = self._runs[-last:]
        borders = max(runs, key=lambda run: run.shape[1])[0, _MERGED_AT_ONCE::_MERGED_AT_ONCE]
        cuts = [[0, *run[0].searchsorted(borders).tolist(), run.shape[1]] for run in runs]
        merged = np.empty((2, sum(run.shape[1] for run in runs)), np.uint64)
        done = 0
        for piece in range(len(borders) + 1):
            parts = [
                run[:, cut[piece] : cut[piece + 1]] for run, cut in zip(runs, cuts, strict=True)
            ]
            ordered = _sorted(np.concatenate(parts, axis=1))
            merged[:, done : done + ordered.shape[1]] = ordered
            done += ordered.shape[1]
        self._runs[-last:] = [merged]

    def has(self, ids: Sequence[bytes]) -> list[bool]:
        """Of each of many ids whether it is in."""
        found: list[bool] = self._has(_halves(ids)).tolist()
        return found

    def _has(self, wanted: _Halves) -> npt.NDArray[np.bool_]:
        found = np.zeros(wanted.shape[1], bool)
        for run in self._runs:
            highs, lows = run
            places = np.searchsorted(highs, wanted[0])
            at = np.minimum(places, len(highs) - 1)
            is_high = highs[at] == wanted[0]
            found |= is_high & (lows[at] == wanted[1])
            # Two ids with the same first half: hardly ever, and then one by one.
            for index in np.flatnonzero(is_high & ~found):
                last = np.searchsorted(highs, wanted[0, index], side="right")
                found[index] = wanted[1, index] in lows[places[index] : last]
        return found

    def __contains__(self, identity: object) -> bool:
        return isinstance(identity, bytes) and len(identity) == ID_BYTES and self._has_one(identity)

    def _has_one(self, identity: bytes) -> bool:
        high, low = (np.uint64(half) for half in struct.unpack(">QQ", identity))
        for highs, lows in self._runs:
            place = int(highs.searchsorted(high))
            while place < len(highs) and highs[place] == high:
                if lows[place] == low:
                    return True
                place += 1
        return False

    def __iter__(self) -> Iterator[bytes]:
        for run in self._runs:
            whole = _bytes(run)
            yield from (whole[at : at + ID_BYTES] for at in range(0, len(whole), ID_BYTES))

    def __len__(self) -> int:
        return sum(run.shape[1] for run in self._runs)

    def digest(self) -> bytes:
        """16 bytes that are the same for equal sets, in whatever order they grew."""
        with np.errstate(over="ignore"):
            sums = [run.sum(axis=1, dtype=np.uint64) for run in self._runs]
            total = np.sum(sums, axis=0, dtype=np.uint64) if sums else np.zeros(2, np.uint64)
        return _bytes(total.reshape(2, 1))

    @classmethod
    def _from_iterable(cls, it: Iterable[bytes]) -> set[bytes]:  # type: ignore[override]
        """What & and - make; the results are small."""
        return set(it)


def which_are_in(ids: Sequence[bytes], known: Container[bytes]) -> list[bool]:
    """Of each of many ids whether it is known: at once where that is possible."""
    return known.has(ids) if isinstance(known, IdSet) else [each in known for each in ids]


class RepeatFinder:
    """Takes ids in any number, finds those that came more than once. On disk beyond some 65,000.

    A context: the files are gone at its end.
    """

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: list[BinaryIO] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, identity: bytes) -> None:
        self._waiting.append(identity)
        if len(self._waiting) >= _BUFFERED_IDS:
            self._spill()

    def finish(self) -> tuple[int, frozenset[bytes]]:
        """How many different ids came, and those that came more than once."""
        if not self._files:
            return _repeats(_halves(self._waiting))
        self._spill()
        different, repeated = 0, set[bytes]()
        for file in self._files:
            file.flush()
            count, again = _repeats(_from_bytes(np.fromfile(file.name, _HALF)))
            different += count
            repeated |= again
        return different, frozenset(repeated)

    def _spill(self) -> None:
        """Ids are hashes, so their first bits share them out evenly."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="fpe-ids-")
            folder = Path(self._folder.name)
            self._files = [(folder / str(number)).open("w+b") for number in range(_BUCKETS)]
        halves = _halves(self._waiting)
        self._waiting = []
        buckets = halves[0] >> np.uint64(64 - (_BUCKETS - 1).bit_length())
        order = np.argsort(buckets, kind="stable")
        ends = np.searchsorted(buckets[order], np.arange(_BUCKETS), side="right")
        parts = np.split(halves[:, order], ends[:-1], axis=1)
        for file, ids in zip(self._files, parts, strict=True):
            file.write(_bytes(ids))


def _repeats(halves: _Halves) -> tuple[int, frozenset[bytes]]:
    """How many different ids, and those that are there more than once."""
    ordered = _sorted(halves)
    is_again = _is_again(ordered)
    again = _bytes(ordered[:, 1:][:, is_again])
    repeated = frozenset(again[at : at + ID_BYTES] for at in range(0, len(again), ID_BYTES))
    return ordered.shape[1] - int(is_again.sum()), repeated


ID_BYTES = 16

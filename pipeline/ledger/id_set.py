"""Sets of millions of ids: in memory with 16 bytes per id, or on disk.

A Python set takes some 110 bytes per id. `IdSet` keeps ids in sorted arrays and answers questions
about many ids at once; `RepeatFinder` finds ids that occur more than once and keeps no others.
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
"""(2, n): each id as two numbers, the high halves in the first row. Rows are contiguous, because
numpy would copy a column for every search."""
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
    """(n - 1,): for each of the sorted ids but the first, whether it equals the one before."""
    return np.asarray((ordered[:, 1:] == ordered[:, :-1]).all(axis=0))


class IdSet(AbstractSet[bytes]):
    """A set of ids of 16 bytes, in sorted arrays. Ids can be added, but not removed.

    Arrays of similar size are merged, so an id is moved about log n times. During a merge its
    inputs and its result are in memory.
    """

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self._runs: list[_Halves] = []
        self.update(ids)

    def update(self, ids: Iterable[bytes]) -> None:
        """Adds ids; many at once are faster. Raises ValueError if one does not have 16 bytes."""
        added = _sorted(_halves(list(ids)))
        is_new = ~self._has(added)
        is_new[1:] &= ~_is_again(added)
        if is_new.any():
            self._runs.append(added[:, is_new])
        while len(self._runs) > 1 and self._runs[-2].shape[1] <= 2 * self._runs[-1].shape[1]:
            self._merge(2)

    def compact(self) -> None:
        """Merges all arrays into one, so that looking up an id takes microseconds."""
        if len(self._runs) > 1:
            self._merge(len(self._runs))

    def _merge(self, last: int) -> None:
        """Merges the last arrays; piece by piece, to need little memory next to the result."""
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
        """For each of many ids, whether it is in the set."""
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
            # Two ids with the same first half are rare, so they are searched one by one.
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
        """16 bytes that are equal for equal sets, in whatever order ids were added."""
        with np.errstate(over="ignore"):
            sums = [run.sum(axis=1, dtype=np.uint64) for run in self._runs]
            total = np.sum(sums, axis=0, dtype=np.uint64) if sums else np.zeros(2, np.uint64)
        return _bytes(total.reshape(2, 1))

    @classmethod
    def _from_iterable(cls, it: Iterable[bytes]) -> set[bytes]:  # type: ignore[override]
        """Makes the results of & and -, which are small."""
        return set(it)


def which_are_in(ids: Sequence[bytes], known: Container[bytes]) -> list[bool]:
    """For each of many ids, whether it is in `known`; fast if that is an IdSet."""
    return known.has(ids) if isinstance(known, IdSet) else [each in known for each in ids]


class RepeatFinder:
    """Finds the ids that were added more than once. Beyond some 65,000 ids it uses temporary files.

    A context manager, which removes the files.
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
        """(number of different ids, the ids that were added more than once)."""
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
        """Writes ids to files by their first bits; ids are hashes, so the files grow evenly."""
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
    """(number of different ids, the ids that occur more than once)."""
    ordered = _sorted(halves)
    is_again = _is_again(ordered)
    again = _bytes(ordered[:, 1:][:, is_again])
    repeated = frozenset(again[at : at + ID_BYTES] for at in range(0, len(again), ID_BYTES))
    return ordered.shape[1] - int(is_again.sum()), repeated


ID_BYTES = 16

"""Sets of millions of ids: in memory with 16 bytes per id, or on disk.

A Python set takes some 110 bytes per id. `IdSet` keeps ids in sorted arrays and answers questions
about many ids at once, `IdMap` also has a number for each; `RepeatFinder` finds ids that occur more
than once and keeps no others.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ID_BYTES = 16
_Halves: TypeAlias = npt.NDArray[np.uint64]
"""(2, n): each id as two numbers, the high halves in the first row."""
_Run: TypeAlias = list[npt.NDArray[Any]]
"""Arrays of one length, sorted by id: the high halves of the ids, the low halves, and in an `IdMap`
the numbers. They are separate because numpy would copy a column for every search."""
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


def _bytes(halves: _Halves | _Run) -> bytes:
    return np.stack([halves[0], halves[1]]).T.astype(_HALF).tobytes()


def _order(halves: _Halves | _Run) -> npt.NDArray[np.int64]:
    """The places of the ids from the smallest to the largest; equal ids keep their order."""
    return np.lexsort((halves[1], halves[0]))


def _is_again(ordered: _Halves) -> npt.NDArray[np.bool_]:
    """(n - 1,): for each of the sorted ids but the first, whether it equals the one before."""
    return np.asarray((ordered[:, 1:] == ordered[:, :-1]).all(axis=0))


class IdSet(AbstractSet[bytes]):
    """A set of ids of 16 bytes, in sorted arrays. Ids can be added, but not removed.

    Arrays of similar size are merged, so an id is moved about log n times. A merge shrinks its
    inputs while its result grows, so the ids are in memory once.
    """

    def __init__(self, ids: Iterable[bytes] = ()) -> None:
        self._runs: list[_Run] = []
        self.update(ids)

    def update(self, ids: Iterable[bytes]) -> None:
        """Adds ids; many at once are faster. Raises ValueError if one does not have 16 bytes."""
        added = _halves(list(ids))
        added = added[:, _order(added)]
        is_new = ~self._has(added)
        is_new[1:] &= ~_is_again(added)
        self._append([column[is_new] for column in added])

    def compact(self) -> None:
        """Merges all arrays into one, so that looking up an id takes microseconds."""
        if len(self._runs) > 1:
            self._merge(len(self._runs))

    def _append(self, run: _Run) -> None:
        """Adds sorted ids that are not in the set, with the other arrays of a run."""
        if len(run[0]):
            self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            self._merge(2)

    def _merge(self, last: int) -> None:
        """Merges the last arrays piece by piece, from the largest ids to the smallest. What is
        merged is cut off the inputs at once: memory grows by one piece, not by the result."""
        runs = self._runs[-last:]
        longest = max(runs, key=lambda run: len(run[0]))
        borders = longest[0][_MERGED_AT_ONCE::_MERGED_AT_ONCE].copy()
        cuts = [[0, *run[0].searchsorted(borders).tolist()] for run in runs]
        left = sum(len(run[0]) for run in runs)
        merged = [np.empty(left, column.dtype) for column in runs[0]]
        for piece in reversed(range(len(borders) + 1)):
            starts = [cut[piece] for cut in cuts]
            columns = [
                np.concatenate([column[start:] for column, start in zip(same, starts, strict=True)])
                for same in zip(*runs, strict=True)
            ]
            order = _order(columns)
            for result, column in zip(merged, columns, strict=True):
                result[left - len(order) : left] = column[order]
            left -= len(order)
            for run, start in zip(runs, starts, strict=True):
                for column in run:
                    column.resize(start, refcheck=False)
        self._runs[-last:] = [merged]

    def has(self, ids: Sequence[bytes]) -> list[bool]:
        """For each of many ids, whether it is in the set."""
        found: list[bool] = self._has(_halves(ids)).tolist()
        return found

    def _has(self, wanted: _Halves) -> npt.NDArray[np.bool_]:
        found = np.zeros(wanted.shape[1], bool)
        for run in self._runs:
            found |= _places(run, wanted) >= 0
        return found

    def __contains__(self, identity: object) -> bool:
        return (
            isinstance(identity, bytes)
            and len(identity) == ID_BYTES
            and self._place_of(identity) is not None
        )

    def _place_of(self, identity: bytes) -> tuple[_Run, int] | None:
        """The run that has an id, and its place there; faster for one id than `_places`."""
        high, low = (np.uint64(half) for half in struct.unpack(">QQ", identity))
        for run in self._runs:
            highs, lows = run[:2]
            place = int(highs.searchsorted(high))
            while place < len(highs) and highs[place] == high:
                if lows[place] == low:
                    return run, place
                place += 1
        return None

    def __iter__(self) -> Iterator[bytes]:
        for whole in self.packed():
            yield from unpacked(whole)

    def packed(self) -> Iterator[bytes]:
        """All ids, a bounded number at a time, without anything between them; sorted if the set is
        compact (`compact`)."""
        for run in self._runs:
            for at in range(0, len(run[0]), _BUFFERED_IDS):
                yield _bytes([column[at : at + _BUFFERED_IDS] for column in run])

    def __len__(self) -> int:
        return sum(len(run[0]) for run in self._runs)

    def digest(self) -> bytes:
        """16 bytes that are equal for equal sets, in whatever order ids were added."""
        total = np.zeros(2, np.uint64)
        with np.errstate(over="ignore"):
            for run in self._runs:
                total += [column.sum(dtype=np.uint64) for column in run[:2]]
        return _bytes(total.reshape(2, 1))

    @classmethod
    def _from_iterable(cls, it: Iterable[bytes]) -> set[bytes]:  # type: ignore[override]
        """Makes the results of & and -, which are small."""
        return set(it)


class IdMap(IdSet):
    """A set of ids with a number for each of them, of a type that is chosen at first."""

    def __init__(self, number_type: npt.DTypeLike) -> None:
        self._type = np.dtype(number_type)
        super().__init__()

    def update(self, ids: Iterable[bytes]) -> None:
        """Adds ids with the number 0."""
        whole = b"".join(ids)
        self.put(whole, np.zeros(len(whole) // ID_BYTES, self._type))

    def put(self, packed: bytes, numbers: npt.ArrayLike) -> None:
        """Sets the numbers of ids, new ones or not; of an id that comes twice the last counts.

        `packed`: n ids without anything between them. `numbers`: n, or one for all.
        """
        ids = _from_bytes(np.frombuffer(packed, _HALF))
        numbers = np.broadcast_to(np.asarray(numbers, self._type), ids.shape[1])
        order = _order(ids)
        ids, numbers = ids[:, order], numbers[order]
        is_last = np.ones(len(order), bool)
        is_last[:-1] = ~_is_again(ids)
        ids, numbers = ids[:, is_last], numbers[is_last]
        is_new = np.ones(len(numbers), bool)
        for run in self._runs:
            places = _places(run, ids)
            is_there = places >= 0
            run[2][places[is_there]] = numbers[is_there]
            is_new &= ~is_there
        self._append([*(half[is_new] for half in ids), numbers[is_new]])

    def get(self, packed: bytes, absent: int) -> npt.NDArray[np.int64]:
        """(n,): the numbers of n ids, `absent` for one that is not in the set."""
        ids = _from_bytes(np.frombuffer(packed, _HALF))
        numbers = np.full(ids.shape[1], absent, np.int64)
        for run in self._runs:
            places = _places(run, ids)
            is_there = places >= 0
            numbers[is_there] = run[2][places[is_there]]
        return numbers

    def number_of(self, identity: bytes) -> int | None:
        """The number of an id; None if it is not in the set."""
        found = self._place_of(identity)
        return None if found is None else int(found[0][2][found[1]])

    def items(self) -> Iterator[tuple[bytes, int]]:
        """All ids with their numbers."""
        of_runs = (number for run in self._runs for number in run[2])
        return zip(self, map(int, of_runs), strict=True)

    def where(self, is_wanted: Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]]) -> IdSet:
        """The ids whose numbers are wanted: `is_wanted` answers for an array of numbers."""
        chosen = IdSet()
        for run in self._runs:
            wanted = is_wanted(run[2])
            chosen._append([half[wanted] for half in run[:2]])
        return chosen

    def renumber(self, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
        """Replaces all numbers, array by array."""
        for run in self._runs:
            run[2][:] = change(run[2])


def _places(run: _Run, wanted: _Halves) -> npt.NDArray[np.int64]:
    """For each of the wanted ids its place in a run, -1 if it is not there."""
    highs, lows = run[:2]
    first = np.searchsorted(highs, wanted[0])
    at = np.minimum(first, len(highs) - 1)
    is_high = highs[at] == wanted[0]
    places = np.where(is_high & (lows[at] == wanted[1]), at, -1)
    # Two ids with the same first half are rare, so they are searched one by one.
    for index in np.flatnonzero(is_high & (places < 0)):
        last = np.searchsorted(highs, wanted[0, index], side="right")
        found = np.flatnonzero(lows[first[index] : last] == wanted[1, index])
        if len(found):
            places[index] = first[index] + found[0]
    return places


def unpacked(packed: bytes) -> Iterator[bytes]:
    """Ids that lie one after the other, one by one."""
    return (packed[at : at + ID_BYTES] for at in range(0, len(packed), ID_BYTES))


def packed_ids(table: pa.Table) -> bytes:
    """The ids of a table's column `edit_id` (binary(16), without nulls), one after the other."""
    ids = table["edit_id"].combine_chunks()
    if isinstance(ids, pa.ChunkedArray):  # of no chunk, or of several that did not fit into one
        return b"".join(ids.to_pylist())
    whole: bytes = ids.buffers()[1].to_pybytes() if len(ids) else b""
    return whole[ids.offset * ID_BYTES : (ids.offset + len(ids)) * ID_BYTES]


def ids_with_places(packed: bytes) -> tuple[IdList, npt.NDArray[np.int64]]:
    """The different ones of n ids, sorted, and the place of each of the n among them."""
    halves = _from_bytes(np.frombuffer(packed, _HALF))
    order = _order(halves)
    ordered = halves[:, order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = ~_is_again(ordered)
    places = np.empty(len(order), np.int64)
    places[order] = np.cumsum(is_first) - 1
    return IdList(_bytes(ordered[:, is_first])), places


class IdList(Sequence[bytes]):
    """Ids that lie one after the other in memory, as a sequence."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed) // ID_BYTES

    def __getitem__(self, place: Any) -> Any:
        """The id at a place. Raises IndexError."""
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._packed[int(place) * ID_BYTES : (int(place) + 1) * ID_BYTES]


def which_are_in(ids: Sequence[bytes], known: Container[bytes]) -> list[bool]:
    """For each of many ids, whether it is in `known`; fast if that answers for many (`has`)."""
    has = getattr(known, "has", None)
    return [each in known for each in ids] if has is None else list(has(ids))


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
    ordered = halves[:, _order(halves)]
    is_again = _is_again(ordered)
    again = _bytes(ordered[:, 1:][:, is_again])
    return ordered.shape[1] - int(is_again.sum()), frozenset(unpacked(again))

"""The committed outcomes of a run: "done" means "in the ledger".

A ledger is a row of files, `.ledger/outcomes-00000000.parquet` and so on. Only the driver writes
them, each by an exclusive create under the next number, and none is ever written again. So a kill
at any moment leaves whole files, and of two drivers on one run folder the second finds its number
taken and stops instead of doubling outcomes (on stores with a real exclusive create: see storage).
An edit has one standing outcome, its latest: accepted and rejected are final, failed ones can be
tried again (`Ledger.reopen`), and what came of that is a later row; the earlier one stays.
A file without rows is a fence, see `fence`. A file of zero bytes is what a failed write left: it
does not exist, and its number is free. `pipeline.ledger` lists what else a run writes, and when.
"""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import AlreadyExistsError, LedgerError
from pipeline.ledger.id_set import IdSet
from pipeline.ledger.outcome import OUTCOME_SCHEMA, Outcome, as_outcomes, with_todays_reasons
from pipeline.logs import about
from pipeline.storage.folder import Folder

LEDGER_FOLDER = ".ledger"
FENCE_KEY = b"fpe.fence"
"""Key in the schema metadata of a fence; the value is the token of the lease that put it up."""
_TAKEN = ["edit_id", "outcome", "reason", "part", "unet_rows", "seconds"]
"""The columns of which a ledger keeps something in memory."""
_READ_AT_ONCE = 8
"""Files of a ledger, mostly waited for on a store: a million edits have five hundred. Every thread
keeps some ten megabytes of the driver."""
_NAME = re.compile(r"outcomes-(\d{8,})\.parquet")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LedgerCounts:
    """What a ledger holds, summed: every edit once, by its standing outcome.

    `seconds` and `unet_rows` are what all of it cost, with the attempts that were superseded.
    """

    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    failed_by_code: Mapping[str, int] = field(default_factory=dict)
    rejected_by_reason: Mapping[str, int] = field(default_factory=dict)
    unet_rows: float = 0.0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return self.accepted + self.rejected + self.failed


class Right(Protocol):
    """The right to write to a run folder, which can be lost: a `lease.Lease`."""

    def check(self) -> None:
        """Raises UserError where it is lost."""


class Ledger:
    """The ledger of one run folder. One object, in the driver, writes; any number may read."""

    def __init__(self, folder: Folder, right: Right | None = None) -> None:
        """An empty view; `Ledger.open` reads what is there."""
        self.folder = folder
        self._right = right
        self._next_number = 0
        self._done = IdSet()
        self._failed: dict[bytes, str] = {}
        self._rejected = IdSet()
        self._reopened: frozenset[bytes] = frozenset()
        self._parts: set[str] = set()
        self._last_parts: set[str] = set()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._unet_rows = 0.0
        self._seconds = 0.0

    @classmethod
    def open(cls, folder: Folder, right: Right | None = None) -> Self:
        """Reads all committed outcomes, keeping ids and sums. Raises LedgerError, StorageError.

        `right` is checked before every commit; a run has one, its lease.
        """
        ledger = cls(folder, right)
        names = ledger.files()
        with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="ledger") as pool:
            for first in range(0, len(names), _READ_AT_ONCE):  # few tables at a time, in order
                some = names[first : first + _READ_AT_ONCE]
                tables = pool.map(lambda name: ledger._read(name, _TAKEN), some)
                for name, table in zip(some, tables, strict=True):
                    ledger._take(table, name)
                    ledger._next_number = number_of(name) + 1
        ledger._done.compact()
        ledger._rejected.compact()
        return ledger

    def done_ids(self) -> IdSet:
        """The edit ids that are in the ledger. The set is the ledger's own: read it only."""
        return self._done

    def outcome_of(self, edit_id: bytes) -> Outcome | None:
        """The standing outcome of an edit, None where the ledger does not have it."""
        if edit_id not in self._done:
            return None
        if edit_id in self._failed:
            return Outcome.FAILED
        return Outcome.REJECTED if edit_id in self._rejected else Outcome.ACCEPTED

    def failed_ids(self, codes: Collection[str] = ()) -> frozenset[bytes]:
        """The edits that stand as failed, with one of these failure codes; no codes: with any."""
        return frozenset(i for i, code in self._failed.items() if not codes or code in codes)

    def reopen(self, edit_ids: frozenset[bytes]) -> None:
        """Lets failed edits enter once more, whatever comes of them. Writes nothing.

        Raises ValueError for an edit that does not stand as failed.
        """
        if not edit_ids <= self._failed.keys():
            raise ValueError("only edits that stand as failed can be tried again")
        self._reopened = edit_ids

    def reopened_ids(self) -> frozenset[bytes]:
        """The edits of `reopen` that have not entered again yet."""
        return self._reopened

    def lacks(self, table: pa.Table) -> list[bool]:
        """Which of these outcomes the ledger does not have: of new edits, or better than a failure.

        One that is better is found where a part was finished although its edits count as failed.
        """
        ids, outcomes = (table[name].to_pylist() for name in ("edit_id", "outcome"))
        return [
            not is_done or (edit_id in self._failed and outcome != Outcome.FAILED)
            for edit_id, is_done, outcome in zip(ids, self._done.has(ids), outcomes, strict=True)
        ]

    def parts(self) -> set[str]:
        """The folders whose metadata has edits of the ledger, accepted or rejected ones."""
        return self._parts

    def settled_parts(self) -> set[str]:
        """The parts that cannot lack an outcome any more.

        A run that is killed can leave one whose outcomes came half with the last commit and half
        not at all, so those of the last file are not among them.
        """
        return self._parts - self._last_parts

    def counts(self) -> LedgerCounts:
        """Sums over everything committed."""
        by_outcome: Counter[str] = Counter()
        for (outcome, _), count in self._counts.items():
            by_outcome[outcome] += count
        return LedgerCounts(
            accepted=by_outcome[Outcome.ACCEPTED],
            rejected=by_outcome[Outcome.REJECTED],
            failed=by_outcome[Outcome.FAILED],
            failed_by_code=self._reasons(Outcome.FAILED),
            rejected_by_reason=self._reasons(Outcome.REJECTED),
            unet_rows=self._unet_rows,
            seconds=self._seconds,
        )

    def commit(self, table: pa.Table) -> pa.Table:
        """Adds outcomes and returns those that were added: an edit that is in already is left out.

        A failed edit is not in the way of a better outcome, a reopened one of none. They are
        committed when this returns. Writes nothing for nothing new. Raises LeaseError where another
        run has the folder by now, LedgerError where another driver committed or put up a fence
        meanwhile, and StorageError.
        """
        if not table.schema.equals(OUTCOME_SCHEMA):
            raise ValueError(f"outcomes must have OUTCOME_SCHEMA, got {table.schema}")
        new = table.filter(pa.array(self._enters(table), pa.bool_()))
        if not new.num_rows:
            return new
        sink = io.BytesIO()
        pq.write_table(new, sink, compression="zstd")
        name = _file_of(self._next_number)
        if self._right is not None:
            self._right.check()
        try:
            self.folder.write_new(name, sink.getvalue())
        except AlreadyExistsError as error:
            raise LedgerError(
                f"{self.folder.url_of(name)} was written by another run on this folder: stop one "
                "of the two, then start the other again; it goes on where both had come to"
            ) from error
        self._take(new, name)
        self._next_number += 1
        _log_commit(new)
        return new

    def outcomes(self) -> Iterator[pa.Table]:
        """The committed outcomes, file by file in the order of commits."""
        for name in self.files():
            yield self._read(name)

    def files(self) -> list[str]:
        """Paths of the ledger's files, in the order of commits, fences included."""
        return _files(self.folder)

    def _enters(self, table: pa.Table) -> list[bool]:
        seen: set[bytes] = set()
        enters = []
        for edit_id, is_lacking in zip(
            table["edit_id"].to_pylist(), self.lacks(table), strict=True
        ):
            enters.append((is_lacking or edit_id in self._reopened) and edit_id not in seen)
            seen.add(edit_id)
        return enters

    def _read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The outcomes of a file; `columns`: these only."""
        data = self.folder.read(name)
        try:
            if columns is None:
                return as_outcomes(pq.read_table(io.BytesIO(data)))
            schema = pa.schema([OUTCOME_SCHEMA.field(column) for column in columns])
            read = pq.ParquetFile(io.BytesIO(data)).read(columns, use_threads=False)
            return with_todays_reasons(read.select(columns).cast(schema))
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise LedgerError(
                f"{self.folder.url_of(name)} is damaged or no ledger file ({error}); restore it, "
                "or move it away: its edits are then found in their parts or made again"
            ) from error

    def _take(self, table: pa.Table, name: str) -> None:
        if not table.num_rows:
            return  # a fence; the last commit is still the last
        ids = table["edit_id"].to_pylist()
        superseded = self._supersede(ids)
        failed = _with_outcome(table, Outcome.FAILED)
        failed_ids = failed["edit_id"].to_pylist()
        self._failed |= {
            edit_id: reason
            for edit_id, is_done, reason in zip(
                failed_ids, self._done.has(failed_ids), failed["reason"].to_pylist(), strict=True
            )
            if not is_done or edit_id in superseded
        }
        self._rejected.update(_with_outcome(table, Outcome.REJECTED)["edit_id"].to_pylist())
        self._done.update(ids)
        self._last_parts = {part for part in pc.unique(table["part"]).to_pylist() if part}
        self._parts |= self._last_parts
        groups = table.group_by(["outcome", "reason"]).aggregate([([], "count_all")])
        for group in groups.to_pylist():
            self._counts[group["outcome"], group["reason"]] += group["count_all"]
        self._unet_rows += float(np.nansum(table["unet_rows"].to_numpy()))
        self._seconds += float(np.nansum(table["seconds"].to_numpy()))
        _log.debug("%s: %d outcomes", name, len(ids))

    def _supersede(self, edit_ids: list[bytes]) -> set[bytes]:
        """Takes the failures of these edits out of the count; their rows stay in their files."""
        superseded = self._failed.keys() & edit_ids if self._failed else set[bytes]()
        for edit_id in superseded:
            self._counts[Outcome.FAILED, self._failed.pop(edit_id)] -= 1
        self._reopened -= superseded
        return superseded

    def _reasons(self, outcome: Outcome) -> dict[str, int]:
        found = {reason: n for (kind, reason), n in self._counts.items() if kind == outcome and n}
        return dict(sorted(found.items()))


def _with_outcome(table: pa.Table, outcome: Outcome) -> pa.Table:
    return table.filter(pc.equal(table["outcome"], outcome.value))


_LEVELS = {Outcome.FAILED: logging.INFO, Outcome.REJECTED: logging.INFO}


def _log_commit(new: pa.Table) -> None:
    """What came in: every edit that failed or was rejected, and in detail the others too."""
    for outcome in Outcome:
        level = _LEVELS.get(outcome, logging.DEBUG)
        if _log.isEnabledFor(level):
            edits = _with_outcome(new, outcome)
            for edit in edits.select(["edit_id", "group_id", "reason", "message"]).to_pylist():
                _log_edit(level, outcome, edit)
    of_all = about(stage="commit", edits=new.num_rows)
    _log.debug("%d edits committed", new.num_rows, extra=of_all)


def _log_edit(level: int, outcome: Outcome, edit: Mapping[str, Any]) -> None:
    why = [part for part in (edit["reason"], edit["message"]) if part]
    code = {"code": edit["reason"]} if edit["reason"] else {}
    of_edit = about(stage="commit", edit_id=edit["edit_id"], group_id=edit["group_id"], **code)
    _log.log(level, "%s", ": ".join([f"edit {outcome.value}", *why]), extra=of_edit)


def fence(folder: Folder, token: int) -> str:
    """Takes the next number of the ledger with a file without rows; returns its path.

    Whoever read the ledger before can commit under that number only, so it cannot any more. One
    that committed first has done so: read the ledger after the fence. Raises StorageError.
    """
    names = _files(folder)
    number = number_of(names[-1]) + 1 if names else 0
    schema = OUTCOME_SCHEMA.with_metadata({FENCE_KEY: str(token).encode()})
    sink = io.BytesIO()
    pq.write_table(schema.empty_table(), sink)
    while not folder.write_if_absent(_file_of(number), sink.getvalue()):
        number += 1  # the old holder committed at this very moment
    return _file_of(number)


def _files(folder: Folder) -> list[str]:
    paths = folder.list(LEDGER_FOLDER)  # none of zero bytes
    return sorted(
        (path for path in paths if _NAME.fullmatch(path.rpartition("/")[2])), key=number_of
    )


def _file_of(number: int) -> str:
    return f"{LEDGER_FOLDER}/outcomes-{number:08d}.parquet"


def number_of(path: str) -> int:
    """The number in a ledger file's name."""
    match = _NAME.fullmatch(path.rpartition("/")[2])
    if match is None:
        raise ValueError(f"{path} is not a ledger file")
    return int(match[1])

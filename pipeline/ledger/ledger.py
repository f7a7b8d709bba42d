"""The committed outcomes of a run: "done" means "in the ledger".

A ledger is a sequence of files, `.ledger/outcomes-00000000.parquet` and so on. Only the driver
writes them, each with an exclusive create under the next number, and none is ever changed. So a
kill at any moment leaves whole files. Of two drivers on one run folder the second finds its number
taken and stops, instead of writing outcomes twice (on stores with a true exclusive create: see
`storage.folder`).

An edit has one standing outcome, its latest. Accepted and rejected are final. A failed edit can be
retried (`Ledger.reopen`); the new outcome is a later row, and the earlier row stays.

A file without rows is a fence, see `fence`. A file of zero bytes is left by a failed write: it
counts as missing, and its number as free. `pipeline.ledger` lists what else a run writes, and when.
"""

from __future__ import annotations

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

from pipeline.errors import AlreadyExistsError, LedgerError
from pipeline.ledger.checked_file import DAMAGED, checked_parquet, read_checked
from pipeline.ledger.id_set import IdSet
from pipeline.ledger.outcome import OUTCOME_SCHEMA, Outcome, as_outcomes, with_todays_reasons
from pipeline.logs import about
from pipeline.storage.folder import Folder

LEDGER_FOLDER = ".ledger"
FENCE_KEY = b"fpe.fence"
"""Key in the schema metadata of a fence; the value is the token of the lease that put it up."""
_TAKEN = ["edit_id", "outcome", "reason", "part", "unet_rows", "seconds"]
"""The columns that opening a ledger reads."""
_READ_AT_ONCE = 8
"""Files read in parallel, since reading mostly waits for the store; a million edits have 500 files.
Every thread takes some ten megabytes of the driver's memory."""
_NAME = re.compile(r"outcomes-(\d{8,})\.parquet")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LedgerCounts:
    """The sums of a ledger: every edit counts once, by its standing outcome.

    `seconds` and `unet_rows` are the cost of all outcomes, including superseded ones.
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
    """The right to write to a run folder, which can be lost; `lease.Lease` is one."""

    def check(self) -> None:
        """Raises UserError if the right is lost."""


class Ledger:
    """The ledger of one run folder. One object, in the driver, writes; any number can read."""

    def __init__(self, folder: Folder, right: Right | None = None) -> None:
        """An empty ledger; `Ledger.open` reads the files that exist."""
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
        """Reads all committed outcomes, and keeps ids and sums. Raises LedgerError, StorageError.

        `right` is checked before every commit; a run passes its lease.
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
        """The ids of all edits in the ledger. The set is the ledger's own: do not change it."""
        return self._done

    def outcome_of(self, edit_id: bytes) -> Outcome | None:
        """The standing outcome of an edit; None if the ledger does not have it."""
        if edit_id not in self._done:
            return None
        if edit_id in self._failed:
            return Outcome.FAILED
        return Outcome.REJECTED if edit_id in self._rejected else Outcome.ACCEPTED

    def failed_ids(self, codes: Collection[str] = ()) -> frozenset[bytes]:
        """The edits whose standing outcome is failed, with one of `codes`; empty: with any code."""
        return frozenset(i for i, code in self._failed.items() if not codes or code in codes)

    def reopen(self, edit_ids: frozenset[bytes]) -> None:
        """Allows one more outcome of any kind for each of these failed edits. Writes nothing.

        Raises ValueError if the standing outcome of one of them is not failed.
        """
        if not edit_ids <= self._failed.keys():
            raise ValueError("only edits whose standing outcome is failed can be retried")
        self._reopened = edit_ids

    def reopened_ids(self) -> frozenset[bytes]:
        """The edits of `reopen` without a new outcome yet."""
        return self._reopened

    def lacks(self, table: pa.Table) -> list[bool]:
        """For each row, whether the ledger lacks it: a new edit, or one that only failed so far.

        The latter occurs if a part was finished although its edits count as failed.
        """
        ids, outcomes = (table[name].to_pylist() for name in ("edit_id", "outcome"))
        return [
            not is_done or (edit_id in self._failed and outcome != Outcome.FAILED)
            for edit_id, is_done, outcome in zip(ids, self._done.has(ids), outcomes, strict=True)
        ]

    def parts(self) -> set[str]:
        """The folders whose metadata has accepted or rejected edits of the ledger."""
        return self._parts

    def settled_parts(self) -> set[str]:
        """The parts of which the ledger has all outcomes.

        A run that is killed may have committed only some outcomes of a part, with its last commit,
        so the parts of the last ledger file are not included.
        """
        return self._parts - self._last_parts

    def counts(self) -> LedgerCounts:
        """The sums over all committed outcomes."""
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
        """Commits outcomes, and returns those that were added.

        An outcome is left out if the ledger has one of the same edit already, unless that is a
        failure and the new one is better, or the edit was reopened. If nothing is new, no file is
        written. Raises LeaseError if another run uses the folder by now, LedgerError if another
        driver committed or wrote a fence meanwhile, and StorageError.
        """
        if not table.schema.equals(OUTCOME_SCHEMA):
            raise ValueError(f"outcomes must have OUTCOME_SCHEMA, got {table.schema}")
        new = table.filter(pa.array(self._enters(table), pa.bool_()))
        if not new.num_rows:
            return new
        data = checked_parquet(new)
        name = _file_of(self._next_number)
        if self._right is not None:
            self._right.check()
        try:
            self.folder.write_new(name, data)
        except AlreadyExistsError as error:
            raise LedgerError(
                f"{self.folder.url_of(name)} was written by another run on this folder: stop one "
                "of the two, then start the other again; it goes on from what both committed"
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
        """The outcomes of a file; `columns`: only these, None: all."""
        data = self.folder.read(name)
        try:
            if columns is None:
                return as_outcomes(read_checked(data))
            schema = pa.schema([OUTCOME_SCHEMA.field(column) for column in columns])
            read = read_checked(data, columns)
            return with_todays_reasons(read.select(columns).cast(schema))
        except DAMAGED as error:
            raise LedgerError(
                f"{self.folder.url_of(name)} is damaged or not a ledger file ({error}); restore "
                "it, or move it away: its edits are then found in their parts or made again"
            ) from error

    def _take(self, table: pa.Table, name: str) -> None:
        if not table.num_rows:
            return  # a fence is not a commit
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
        """Removes the failures of these edits from the counts; their rows stay in the files."""
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
    """Logs a commit: failed and rejected edits at INFO, accepted ones at DEBUG."""
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
    """Writes a file without rows under the ledger's next number; returns its path.

    A process that read the ledger before can commit only under that number, so its commit now
    fails. It may have committed before the fence, so read the ledger after this. Raises
    StorageError.
    """
    names = _files(folder)
    number = number_of(names[-1]) + 1 if names else 0
    schema = OUTCOME_SCHEMA.with_metadata({FENCE_KEY: str(token).encode()})
    data = checked_parquet(schema.empty_table())
    while not folder.write_if_absent(_file_of(number), data):
        number += 1  # the old holder has just committed
    return _file_of(number)


def _files(folder: Folder) -> list[str]:
    paths = folder.list(LEDGER_FOLDER)  # does not list files of zero bytes
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

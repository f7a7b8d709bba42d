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
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import AlreadyExistsError, LedgerError
from pipeline.in_order import in_order
from pipeline.ledger.checked_file import DAMAGED, checked_parquet, read_checked
from pipeline.ledger.id_set import IdMap, IdSet, packed_ids
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
_FIRST_FAILED = 3
_REOPENED = 128
"""Numbers of standing outcomes: 0 accepted, 1 rejected, 2 not applicable, from _FIRST_FAILED on
failed with one of the codes; _REOPENED is added while the edit is reopened."""
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
    not_applicable: int = 0
    failed_by_code: Mapping[str, int] = field(default_factory=dict)
    rejected_by_reason: Mapping[str, int] = field(default_factory=dict)
    unet_rows: float = 0.0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return self.accepted + self.rejected + self.failed + self.not_applicable


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
        self._standing = IdMap(np.uint8)
        """For each edit the place of its outcome in `_kinds`, plus _REOPENED if it was reopened."""
        self._kinds = [
            (Outcome.ACCEPTED, ""),
            (Outcome.REJECTED, ""),
            (Outcome.NOT_APPLICABLE, ""),
        ]
        """What an edit's outcome can be; last come failures, each with its code."""
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
        for name, table in zip(names, ledger._tables(names, _TAKEN), strict=True):
            ledger._take(table, name)
            ledger._next_number = number_of(name) + 1
        ledger._standing.compact()
        return ledger

    def done_ids(self) -> IdSet:
        """The ids of all edits in the ledger. The set is the ledger's own: do not change it."""
        return self._standing

    def outcome_of(self, edit_id: bytes) -> Outcome | None:
        """The standing outcome of an edit; None if the ledger does not have it."""
        number = self._standing.number_of(edit_id)
        return None if number is None else self._kinds[number % _REOPENED][0]

    def failed_ids(self, codes: Collection[str] = ()) -> IdSet:
        """The edits whose standing outcome is failed, with one of `codes`; empty: with any code."""
        wanted = [
            number
            for number, (outcome, code) in enumerate(self._kinds)
            if outcome == Outcome.FAILED and (not codes or code in codes)
        ]
        return self._standing.where(lambda numbers: np.isin(numbers % _REOPENED, wanted))

    def reopen(self, edit_ids: AbstractSet[bytes]) -> None:
        """Allows one more outcome of any kind for each of these failed edits. Writes nothing.

        Raises ValueError if the standing outcome of one of them is not failed.
        """
        ids = edit_ids if isinstance(edit_ids, IdSet) else IdSet(edit_ids)
        for packed in ids.packed():
            if (self._standing.get(packed, absent=0) % _REOPENED < _FIRST_FAILED).any():
                raise ValueError("only edits whose standing outcome is failed can be retried")
        self._standing.renumber(lambda numbers: numbers % _REOPENED)
        for packed in ids.packed():
            self._standing.put(packed, self._standing.get(packed, absent=0) + _REOPENED)

    def reopened_ids(self) -> IdSet:
        """The edits of `reopen` without a new outcome yet."""
        return self._standing.where(lambda numbers: numbers >= _REOPENED)

    def lacks(self, table: pa.Table) -> list[bool]:
        """For each row, whether the ledger lacks it: a new edit, or one that only failed so far.

        The latter occurs if a part was finished although its edits count as failed.
        """
        standing = self._standing.get(packed_ids(table), absent=-1)
        is_better = pc.not_equal(table["outcome"], Outcome.FAILED.value).to_numpy()
        found: list[bool] = (
            (standing < 0) | ((standing % _REOPENED >= _FIRST_FAILED) & is_better)
        ).tolist()
        return found

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
            not_applicable=by_outcome[Outcome.NOT_APPLICABLE],
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

    def outcomes(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The committed outcomes, file by file in the order of commits; `columns`: only these."""
        return self._tables(self.files(), columns)

    def _tables(self, names: Sequence[str], columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """The outcomes of some files, in order; a few files are read ahead."""
        with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="ledger") as pool:
            yield from in_order(pool, lambda name: self._read(name, columns), names, _READ_AT_ONCE)

    def files(self) -> list[str]:
        """Paths of the ledger's files, in the order of commits, fences included."""
        return _files(self.folder)

    def _enters(self, table: pa.Table) -> list[bool]:
        seen: set[bytes] = set()
        enters = []
        ids, reopened = table["edit_id"].to_pylist(), self._standing.get(packed_ids(table), 0)
        for edit_id, is_lacking, number in zip(ids, self.lacks(table), reopened, strict=True):
            enters.append((is_lacking or number >= _REOPENED) and edit_id not in seen)
            seen.add(edit_id)
        return enters

    def _read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The outcomes of a file; `columns`: only these, None: all."""
        data = self.folder.read(name)
        try:
            if columns is None:
                return as_outcomes(read_checked(data))
            schema = pa.schema([OUTCOME_SCHEMA.field(column) for column in columns])
            read = read_checked(data, columns).select(columns).cast(schema)
            return with_todays_reasons(read) if "reason" in columns else read
        except DAMAGED as error:
            raise LedgerError(
                f"{self.folder.url_of(name)} is damaged or not a ledger file ({error}); restore "
                "it, or move it away: its edits are then found in their parts or made again"
            ) from error

    def _take(self, table: pa.Table, name: str) -> None:
        if not table.num_rows:
            return  # a fence is not a commit
        ids = packed_ids(table)
        before, numbers = self._standing.get(ids, absent=-1), self._numbers(table)
        had_failed = before % _REOPENED >= _FIRST_FAILED
        had_failed &= before >= 0
        for number in before[had_failed] % _REOPENED:  # these rows stay in the files
            self._counts[self._kinds[number]] -= 1
        is_worse = (before >= 0) & ~had_failed & (numbers >= _FIRST_FAILED)
        self._standing.put(ids, np.where(is_worse, before, numbers))
        self._last_parts = {part for part in pc.unique(table["part"]).to_pylist() if part}
        self._parts |= self._last_parts
        groups = table.group_by(["outcome", "reason"]).aggregate([([], "count_all")])
        for group in groups.to_pylist():
            self._counts[group["outcome"], group["reason"]] += group["count_all"]
        self._unet_rows += float(np.nansum(table["unet_rows"].to_numpy()))
        self._seconds += float(np.nansum(table["seconds"].to_numpy()))
        _log.debug("%s: %d outcomes", name, table.num_rows)

    def _numbers(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """For each row the place of its outcome in `_kinds`. Raises LedgerError."""
        reasons = pc.if_else(pc.equal(table["outcome"], Outcome.FAILED.value), table["reason"], "")
        kinds = pa.table({"outcome": table["outcome"], "reason": reasons})
        places = {kind: place for place, kind in enumerate(self._kinds)}
        for kind in kinds.group_by(["outcome", "reason"]).aggregate([]).to_pylist():
            places.setdefault((Outcome(kind["outcome"]), kind["reason"]), len(places))
        if len(places) > _REOPENED:
            raise LedgerError(f"the ledger has {len(places)} kinds of outcomes: it is damaged")
        self._kinds = list(places)
        pairs = zip(kinds["outcome"].to_pylist(), kinds["reason"].to_pylist(), strict=True)
        return np.array([places[Outcome(outcome), reason] for outcome, reason in pairs], np.int64)

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

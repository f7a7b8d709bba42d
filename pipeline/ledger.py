"""The committed outcomes of a run: "done" means "in the ledger".

A ledger is a row of files, `.ledger/outcomes-00000000.parquet` and so on. Only the driver writes
them, each by an exclusive create under the next number, and none is ever written again. So a kill
at any moment leaves whole files, and of two drivers on one run folder the second finds its number
taken and stops instead of doubling outcomes (on stores with a real exclusive create: see storage).
"""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import AlreadyExistsError, LedgerError
from pipeline.outcome import (
    OUTCOME_SCHEMA,
    OUTCOMES_METADATA_KEY,
    EditKey,
    Outcome,
    outcomes_from_bytes,
    outcomes_table,
)
from pipeline.storage import Folder

LEDGER_FOLDER = ".ledger"
METADATA_FILE = "metadata.parquet"
PART_PREFIX = "part-"
_NAME = re.compile(r"outcomes-(\d{8,})\.parquet")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LedgerCounts:
    """What a ledger holds, summed. `seconds` and `unet_rows` count every edit's share once."""

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


class Ledger:
    """The ledger of one run folder. One object, in the driver, writes; any number may read."""

    def __init__(self, folder: Folder) -> None:
        """An empty view; `Ledger.open` reads what is there."""
        self.folder = folder
        self._next_number = 0
        self._done: set[bytes] = set()
        self._parts: set[str] = set()
        self._last_parts: set[str] = set()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._unet_rows = 0.0
        self._seconds = 0.0

    @classmethod
    def open(cls, folder: Folder) -> Self:
        """Reads all committed outcomes, keeping ids and sums. Raises LedgerError, StorageError."""
        ledger = cls(folder)
        for name in ledger.files():
            ledger._take(ledger._read(name), name)
            ledger._next_number = number_of(name) + 1
        return ledger

    @property
    def next_number(self) -> int:
        """The number of the next file: grows with every commit."""
        return self._next_number

    def done_ids(self) -> set[bytes]:
        """The edit ids that are in the ledger. The set is the ledger's own: read it only."""
        return self._done

    def parts(self) -> set[str]:
        """Names of the parts that hold accepted edits of the ledger."""
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

        They are committed when this returns. Writes nothing for nothing new. Raises LedgerError
        where another driver committed to this run folder meanwhile.
        """
        if not table.schema.equals(OUTCOME_SCHEMA):
            raise ValueError(f"outcomes must have OUTCOME_SCHEMA, got {table.schema}")
        new = table.filter(pa.array(self._is_new(table["edit_id"].to_pylist()), pa.bool_()))
        if not new.num_rows:
            return new
        sink = io.BytesIO()
        pq.write_table(new, sink, compression="zstd")
        name = f"{LEDGER_FOLDER}/outcomes-{self._next_number:08d}.parquet"
        try:
            self.folder.write_new(name, sink.getvalue())
        except AlreadyExistsError as error:
            raise LedgerError(
                f"{self.folder.url_of(name)} was written by another run on this folder: stop one "
                "of the two, then start the other again; it goes on where both had come to"
            ) from error
        self._take(new, name)
        self._next_number += 1
        return new

    def outcomes(self) -> Iterator[pa.Table]:
        """The committed outcomes, file by file in the order of commits."""
        for name in self.files():
            yield self._read(name)

    def files(self) -> list[str]:
        """Paths of the ledger's files, in the order of commits."""
        paths = self.folder.list(LEDGER_FOLDER)
        return sorted(
            (path for path in paths if _NAME.fullmatch(path.rpartition("/")[2])), key=number_of
        )

    def _is_new(self, edit_ids: list[bytes]) -> list[bool]:
        seen: set[bytes] = set()
        new = []
        for edit_id in edit_ids:
            new.append(edit_id not in self._done and edit_id not in seen)
            seen.add(edit_id)
        return new

    def _read(self, name: str) -> pa.Table:
        data = self.folder.read(name)
        try:
            return pq.read_table(io.BytesIO(data)).cast(OUTCOME_SCHEMA)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise LedgerError(
                f"{self.folder.url_of(name)} is damaged or no ledger file ({error}); restore it, "
                "or move it away: its edits are then found in their parts or made again"
            ) from error

    def _take(self, table: pa.Table, name: str) -> None:
        ids = table["edit_id"].to_pylist()
        self._done.update(ids)
        self._last_parts = {part for part in pc.unique(table["part"]).to_pylist() if part}
        self._parts |= self._last_parts
        groups = table.group_by(["outcome", "reason"]).aggregate([([], "count_all")])
        for group in groups.to_pylist():
            self._counts[group["outcome"], group["reason"]] += group["count_all"]
        self._unet_rows += float(np.nansum(table["unet_rows"].to_numpy()))
        self._seconds += float(np.nansum(table["seconds"].to_numpy()))
        _log.debug("%s: %d outcomes", name, len(ids))

    def _reasons(self, outcome: Outcome) -> dict[str, int]:
        found = {reason: n for (kind, reason), n in self._counts.items() if kind == outcome}
        return dict(sorted(found.items()))


def number_of(path: str) -> int:
    """The number in a ledger file's name."""
    match = _NAME.fullmatch(path.rpartition("/")[2])
    if match is None:
        raise ValueError(f"{path} is no ledger file")
    return int(match[1])


def finished_parts(folder: Folder, besides: AbstractSet[str] = frozenset()) -> Iterator[str]:
    """The names of the parts whose last write, the metadata, is there; those in `besides` apart."""
    for name in folder.list_folders():
        if not name.startswith(PART_PREFIX) or name in besides:
            continue
        if folder.exists(f"{name}/{METADATA_FILE}"):
            yield name


def uncommitted(folder: Folder, ledger: Ledger, part: str) -> pa.Table:
    """The outcomes of a finished part that the ledger lacks. Raises LedgerError."""
    outcomes = read_part_outcomes(folder, part)
    done = ledger.done_ids()
    lacking = [edit_id not in done for edit_id in outcomes["edit_id"].to_pylist()]
    return outcomes.filter(pa.array(lacking, pa.bool_()))


def orphan_parts(folder: Folder, ledger: Ledger) -> Iterator[tuple[str, pa.Table]]:
    """Finished parts with outcomes that the ledger lacks: (name, those outcomes).

    A run that is killed between writing a part's metadata and committing it leaves one.
    """
    for part in finished_parts(folder, besides=ledger.settled_parts()):
        outcomes = uncommitted(folder, ledger, part)
        if outcomes.num_rows:
            yield part, outcomes


def adopt_orphan_parts(folder: Folder, ledger: Ledger) -> int:
    """Commits the outcomes of finished parts that no ledger file names; returns how many edits.

    Runs at the start of a run, before planning, so that no finished edit is made again.
    """
    adopted = 0
    for part, outcomes in orphan_parts(folder, ledger):
        added = ledger.commit(outcomes).num_rows
        _log.info("adopted %d finished edits of %s", added, part)
        adopted += added
    return adopted


def read_part_outcomes(folder: Folder, part: str) -> pa.Table:
    """The outcomes of a finished part.

    Its metadata carries all of them (`outcomes_to_bytes`); where it does not, the accepted ones are
    read off its rows, with row -1 and no times. Raises LedgerError for metadata that is damaged.
    """
    path = f"{part}/{METADATA_FILE}"
    file = io.BytesIO(folder.read(path))
    try:
        stored = (pq.read_schema(file).metadata or {}).get(OUTCOMES_METADATA_KEY)
        if stored is not None:
            return outcomes_from_bytes(stored)
        columns = ["edit_id", "group_id", "source_id", "target_prompt", "edited_file_name"]
        rows = pq.read_table(file, columns=columns).to_pylist()
        return outcomes_table(
            EditKey(
                edit_id=bytes.fromhex(row["edit_id"]),
                group_id=bytes.fromhex(row["group_id"]),
                source_id=bytes.fromhex(row["source_id"]),
                row=-1,
                target_prompt=row["target_prompt"],
            ).accepted(
                part=part,
                edited_file_name=f"{part}/{row['edited_file_name']}",
                unet_rows=0.0,
                seconds=0.0,
            )
            for row in rows
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            f"{folder.url_of(path)} is damaged or no metadata of a run ({error}); move the folder "
            "away: its edits are made again"
        ) from error

"""Checks a run: every planned edit has one outcome or is pending, and the files of accepted edits
are there and readable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import LedgerError, StorageError
from pipeline.in_order import in_order
from pipeline.job.job import Job
from pipeline.ledger.by_id import RowsById, is_again, numbered
from pipeline.ledger.checked_file import DAMAGED, read_checked
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import ID_TYPE, Outcome
from pipeline.ledger.parts import (
    METADATA_FILE,
    committing_folders,
    finished_parts,
    image_hashes,
    read_part_outcomes,
)
from pipeline.manifest.annotations import mask_names
from pipeline.manifest.files import MAX_PROBLEMS
from pipeline.plan.plan import open_edits, relaxed_gc
from pipeline.plan.quotas import QuotaRow, quota_table, select_round
from pipeline.plan.resolved_job import Repeats, ResolvedJob, resolve_job
from pipeline.plan.survey import planned_ids
from pipeline.storage.folder import Folder
from pipeline.verify.images import ImageChecks, NamedImage

_LEDGER_COLUMNS = ("edit_id", "outcome", "part", "edited_file_name")
_OWN_FILES = ("edited_file_name", "source_file_name", "mask_file_name", "mask_file_names")
_THREADS = 16


@dataclass(frozen=True)
class Verification:
    """The result of a check. All counts except `not_planned` are of the job's own edits.

    Attributes:
        pending: edits without an outcome. Under quotas, those that the next round takes; if there
            are none, every cell is full or has no more candidates.
        not_planned: edits in the ledger that are not in this job, because an earlier job wrote to
            the same run folder or the manifest has changed. They are checked as well.
        problems: the first problems, at most one page.
        problems_total: the number of all problems.
        edits_skipped_by_quota: edits that could be made, but are not in the next round.
    """

    planned: int
    accepted: int
    rejected: int
    failed: int
    pending: int
    not_planned: int
    images_checked: int
    problems: tuple[str, ...]
    problems_total: int
    edits_skipped_by_quota: int = 0
    quotas: tuple[QuotaRow, ...] = ()
    not_applicable: int = 0

    @property
    def ok(self) -> bool:
        """Whether the folder agrees with the ledger. Pending edits are not a problem."""
        return not self.problems_total


@relaxed_gc()
def verify_run(job: Job) -> Verification:
    """Checks the run folder of a job against its manifest; writes nothing.

    - planned = accepted + rejected + failed + not applicable + pending + skipped by quota, by id;
    - no cell of the job's quotas has more accepted edits than its quota;
    - every edit has one standing outcome: in the ledger no outcome follows an accepted or rejected
      one, and the parts' metadata has the edit once;
    - the ledger's accepted edits and the rows of the metadata are the same, with the same file
      names; so are rejected edits that were kept and the rows of their metadata;
    - every image that the metadata names exists, can be decoded, and is the one that was judged and
      written with this metadata, by its hash (parts of 0.2.0 have no hashes); carried ones exist;
    - the ledger has all finished parts.

    Raises JobError, ManifestError, LedgerError and StorageError if it cannot check the run.
    """
    folder, resolved = Folder.open(job.output, job.storage_options), resolve_job(job)
    with planned_ids(resolved) as (planned, repeats), ExitStack() as stack:
        ledger, metadata, unsettled = (stack.enter_context(RowsById(s)) for s in _SCHEMAS)
        seen = _Findings(ledger, metadata, unsettled)
        committed = seen.take_ledger(Ledger(folder))
        images = seen.take_parts(folder)
        seen.take_unsettled(folder, committed)
        counts = seen.join(folder, planned, committed)
    problems = seen.all_problems()
    quotas = _quota_rows(resolved, repeats, folder, problems)
    pending = counts.pending
    skipped = 0 if job.quotas is None else pending - sum(row.to_do for row in quotas)
    return Verification(
        planned=counts.planned,
        accepted=counts.accepted,
        rejected=counts.rejected,
        failed=counts.failed,
        not_applicable=counts.not_applicable,
        pending=pending - skipped,
        not_planned=counts.not_planned,
        images_checked=images,
        problems=tuple(problems.lines),
        problems_total=problems.total,
        edits_skipped_by_quota=skipped,
        quotas=tuple(quotas),
    )


class _Problems:
    """The number of problems, and the lines of the first of them, which are made only then."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.total = 0

    def add(self, *problems: str) -> None:
        self.total += len(problems)
        self.lines.extend(problems[: max(0, MAX_PROBLEMS - len(self.lines))])

    def add_rows(self, rows: npt.NDArray[np.int64], line_of: Callable[[int], str]) -> None:
        """Adds a problem for each of these rows."""
        self.total += len(rows)
        left = max(0, MAX_PROBLEMS - len(self.lines))
        self.lines.extend(line_of(int(row)) for row in rows[:left])

    def add_all(self, other: _Problems) -> None:
        self.lines.extend(other.lines[: max(0, MAX_PROBLEMS - len(self.lines))])
        self.total += other.total


_OUTCOMES = (Outcome.ACCEPTED, Outcome.REJECTED, Outcome.FAILED, Outcome.NOT_APPLICABLE)
_FAILED = _OUTCOMES.index(Outcome.FAILED)
_ID = pa.field("edit_id", ID_TYPE, nullable=False)
_SCHEMAS = (
    pa.schema([_ID, ("outcome", pa.int8()), ("in_part", pa.bool_()), ("file", pa.int64())]),
    pa.schema([_ID, ("part", pa.int32()), ("row", pa.int32()), ("file", pa.int64())]),
    pa.schema([_ID, ("part", pa.int32()), ("has_failed", pa.bool_())]),
)
"""What is compared of an edit: in the ledger, in the metadata of a part, and in the outcomes of a
part that the ledger may lack. `outcome` is a place in _OUTCOMES, `file` a hash of the file's
name."""


@dataclass(frozen=True)
class _Parts:
    """The parts that the ledger names. `settled`: those of which it has all outcomes."""

    named: AbstractSet[str]
    settled: AbstractSet[str]


@dataclass
class _Counts:
    planned: int = 0
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    not_applicable: int = 0
    not_planned: int = 0

    @property
    def pending(self) -> int:
        return self.planned - self.accepted - self.rejected - self.failed - self.not_applicable


@dataclass
class _Findings:
    """What is read of a run, on disk by edit id, and the problems that were found in it."""

    ledger: RowsById
    metadata: RowsById
    unsettled: RowsById
    parts: list[str] = field(default_factory=list)
    unsettled_parts: list[str] = field(default_factory=list)
    twice: _Problems = field(default_factory=_Problems)
    files: _Problems = field(default_factory=_Problems)
    differences: _Problems = field(default_factory=_Problems)
    missing: _Problems = field(default_factory=_Problems)
    lacking: _Problems = field(default_factory=_Problems)

    def all_problems(self) -> _Problems:
        every = _Problems()
        for some in (self.twice, self.files, self.differences, self.missing, self.lacking):
            every.add_all(some)
        return every

    def take_ledger(self, ledger: Ledger) -> _Parts:
        """Reads the ledger."""
        named, last = set[str](), set[str]()
        for table in ledger.outcomes(_LEDGER_COLUMNS):
            if not table.num_rows:
                continue  # a fence
            last = {part for part in pc.unique(table["part"]).to_pylist() if part}
            named |= last
            columns = {
                "edit_id": table["edit_id"],
                "outcome": pc.index_in(table["outcome"], pa.array(_OUTCOMES)).cast(pa.int8()),
                "in_part": pc.not_equal(table["part"], ""),
                "file": _hashes(table["edited_file_name"].to_pylist()),
            }
            self.ledger.add(pa.table(columns))
        return _Parts(named, named - last)

    def take_parts(self, folder: Folder) -> int:
        """Reads the metadata of all parts and checks their images; returns how many."""
        images = 0
        with (
            ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool,
            ImageChecks(folder) as checks,
        ):
            for checked, problems in checks.check(self._names_of_images(folder, pool)):
                images += checked
                self.files.add(*problems)
        return images

    def _names_of_images(self, folder: Folder, pool: Executor) -> Iterator[list[NamedImage]]:
        """The images of every part, with their hashes; adds its metadata."""
        read = partial(_read_part, folder)
        for part, files in in_order(pool, read, finished_parts(folder), 2 * _THREADS):
            if isinstance(files, LedgerError):
                self.files.add(str(files))
                continue
            rows = files.rows
            self.files.add(*files.problems)
            columns = {
                "edit_id": pa.array([row.edit_id for row in rows], ID_TYPE),
                "part": pa.array([len(self.parts)] * len(rows), pa.int32()),
                "row": pa.array(range(len(rows)), pa.int32()),
                "file": _hashes([row.edited_file for row in rows]),
            }
            self.parts.append(part)
            self.metadata.add(pa.table(columns))
            yield [(name, files.hashes.get(name, b"").hex()) for name in _images_of(rows)]

    def take_unsettled(self, folder: Folder, committed: _Parts) -> None:
        """Reads the outcomes of the finished parts that the ledger may lack."""
        for part in committing_folders(folder, skip=committed.settled):
            try:
                outcomes = read_part_outcomes(folder, part)
            except LedgerError as error:
                self.lacking.add(str(error))
                continue
            columns = {
                "edit_id": outcomes["edit_id"],
                "part": pa.array([len(self.unsettled_parts)] * outcomes.num_rows, pa.int32()),
                "has_failed": pc.equal(outcomes["outcome"], Outcome.FAILED.value),
            }
            self.unsettled_parts.append(part)
            self.unsettled.add(pa.table(columns))

    def join(self, folder: Folder, planned: RowsById, committed: _Parts) -> _Counts:
        """Compares the ledger, the metadata and the plan, bucket by bucket."""
        counts, lacking = _Counts(), Counter[int]()
        is_named = np.array([part in committed.named for part in self.parts], bool)
        readers = (self.ledger, self.metadata, self.unsettled, planned)
        for tables in zip(*(reader.buckets() for reader in readers), strict=True):
            if not any(map(len, tables)):
                continue
            bucket = _Bucket(*tables)
            self.twice.add_rows(*bucket.twice_in_the_ledger())
            self._compare(folder, bucket, is_named)
            self.missing.add_rows(*bucket.without_metadata())
            lacking.update(bucket.lacking_by_part())
            bucket.count(counts)
        for number, edits in sorted(lacking.items()):
            self.lacking.add(
                f"{self.unsettled_parts[number]} is finished, and {edits} of its edits are not in "
                "the ledger: run the same job again, it takes them over"
            )
        return counts

    def _compare(self, folder: Folder, bucket: _Bucket, is_named: npt.NDArray[np.bool_]) -> None:
        """Adds the differences between the ledger and the metadata."""
        for rows, what in bucket.differences(is_named):

            def line(row: int, what: Callable[[int], str] = what) -> str:
                part, number = (int(bucket.metadata[name][row].as_py()) for name in ("part", "row"))
                file = read_metadata(folder, self.parts[part])[number].edited_file
                return f"edit {bucket.metadata['edit_id'][row].as_py().hex()} ({file}){what(row)}"

            self.differences.add_rows(rows, line)


class _Bucket:
    """The edits of a bucket: rows of the ledger, of metadata, of outcomes, and of the plan.

    Every different id has a place; arrays by place say what the ledger has of it.
    """

    def __init__(
        self, ledger: pa.Table, metadata: pa.Table, outcomes: pa.Table, planned: pa.Table
    ) -> None:
        self.ledger, self.metadata, self.outcomes = ledger, metadata, outcomes
        self.ids, places = numbered(ledger, metadata, outcomes, planned)
        self.in_ledger, self.in_metadata, self.in_outcomes, self.in_plan = places
        self.standing = np.full(len(self.ids), -1, np.int64)
        """The standing outcome, -1 for edits that the ledger does not have."""
        self.standing[self.in_ledger] = _numpy(ledger, "outcome")  # of several the last counts
        is_in_part = _numpy(ledger, "in_part")
        of_part = self.in_ledger[is_in_part]
        self.has_file = np.zeros(len(self.ids), bool)
        self.file = np.zeros(len(self.ids), np.int64)
        self.has_file[of_part] = True
        self.file[of_part] = _numpy(ledger, "file")[is_in_part]

    def twice_in_the_ledger(self) -> _Found:
        rows, before = is_again(self.in_ledger)
        outcomes = _numpy(self.ledger, "outcome")
        is_final = outcomes[before] != _FAILED
        at_first = dict(zip(rows[is_final].tolist(), outcomes[before[is_final]], strict=True))
        return (
            rows[is_final],
            lambda row: (
                f"edit {self.ids[self.in_ledger[row]].hex()} is twice in the ledger, "
                f"{_OUTCOMES[at_first[row]]} at first"
            ),
        )

    def differences(self, is_named: npt.NDArray[np.bool_]) -> Iterator[_Found]:
        """Rows of the metadata that do not agree with the ledger.

        `is_named`: for each part whether the ledger names it.
        """
        again, _ = is_again(self.in_metadata)
        is_first = np.ones(len(self.in_metadata), bool)
        is_first[again] = False
        place = self.in_metadata
        has_file, is_known = self.has_file[place], self.standing[place] >= 0
        is_other = self.file[place] != _numpy(self.metadata, "file")
        is_of_named = is_named[_numpy(self.metadata, "part")]
        yield np.sort(again), lambda _: " is twice in the metadata of the parts"
        is_it = is_first & has_file & is_other
        yield np.flatnonzero(is_it), lambda _: ": the ledger names another file"
        is_it = is_first & ~has_file & is_known
        yield (
            np.flatnonzero(is_it),
            lambda row: f" is {_OUTCOMES[self.standing[place[row]]]} in the ledger",
        )
        is_it = is_first & ~has_file & ~is_known & is_of_named
        yield (
            np.flatnonzero(is_it),
            lambda _: " is not in the ledger, which has other edits of its part",
        )

    def without_metadata(self) -> _Found:
        is_missing = self.has_file.copy()
        is_missing[self.in_metadata] = False

        def line(place: int) -> str:
            outcome = _OUTCOMES[self.standing[place]]
            return (
                f"edit {self.ids[place].hex()} is {outcome} in the ledger and in no part's metadata"
            )

        return np.flatnonzero(is_missing), line

    def lacking_by_part(self) -> dict[int, int]:
        """How many outcomes of each part the ledger lacks, as `Ledger.lacks` has it."""
        standing = self.standing[self.in_outcomes]
        is_better = (standing == _FAILED) & ~_numpy(self.outcomes, "has_failed")
        parts = _numpy(self.outcomes, "part")[(standing < 0) | is_better]
        return Counter(parts.tolist())

    def count(self, counts: _Counts) -> None:
        planned = self.standing[self.in_plan]
        counts.planned += len(planned)
        for number, outcome in enumerate(_OUTCOMES):
            of_outcome = getattr(counts, outcome) + int((planned == number).sum())
            setattr(counts, outcome, of_outcome)
        counts.not_planned += int((self.standing >= 0).sum()) - int((planned >= 0).sum())


_Found: TypeAlias = tuple[npt.NDArray[np.int64], Callable[[int], str]]
"""Rows or places with a problem, and what makes the line of one."""


def _numpy(table: pa.Table, name: str) -> npt.NDArray[Any]:
    return np.asarray(table[name].to_numpy())


def _hashes(names: Sequence[str]) -> pa.Array:
    return pa.array(np.fromiter(map(hash, names), np.int64, len(names)))


@dataclass(frozen=True)
class MetadataRow:
    """An edit of a part. File names are relative to the run folder; "" for a source that was not
    kept, and for the edit of a source that the gate rejected. `carried_files` are images that the
    manifest holds, written as they are.

    `columns`: the values of further columns that were asked for.
    """

    edit_id: bytes
    edited_file: str
    source_file: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    mask_files: tuple[str, ...] = ()
    carried_files: tuple[str, ...] = ()


def read_metadata(folder: Folder, part: str, columns: Sequence[str] = ()) -> list[MetadataRow]:
    """The rows of a part's metadata, with these further columns. Raises LedgerError if it cannot be
    read."""
    path = f"{part}/{METADATA_FILE}"
    try:
        table = read_checked(folder.read(path))
        ids = [bytes.fromhex(text) for text in table["edit_id"].to_pylist()]
        edited = table["edited_file_name"].to_pylist()
        has_sources = "source_file_name" in table.column_names
        sources = table["source_file_name"].to_pylist() if has_sources else [None] * len(ids)
        others = table.select(columns).to_pylist() if columns else [{}] * len(ids)
        masks = mask_names(table)
        carried = _carried_names(table)
    except (StorageError, *DAMAGED) as error:
        raise LedgerError(f"{path} cannot be read: {error}") from error
    return [
        MetadataRow(
            identity,
            f"{part}/{file}" if file else "",
            f"{part}/{source}" if source else "",
            other,
            tuple(f"{part}/{mask}" for mask in of_row),
            tuple(f"{part}/{name}" for name in inherited),
        )
        for identity, file, source, other, of_row, inherited in zip(
            ids, edited, sources, others, masks, carried, strict=True
        )
    ]


def _carried_names(metadata: pa.Table) -> list[list[str]]:
    """The files of carried images of each row of a part's metadata, relative to the part."""
    found: list[list[str]] = [[] for _ in range(len(metadata))]
    for name in metadata.column_names:
        if name in _OWN_FILES or not name.endswith(("_file_name", "_file_names")):
            continue
        for names, cell in zip(found, metadata[name].to_pylist(), strict=True):
            cells = cell if isinstance(cell, list) else [cell]
            names.extend(each for each in cells if each)
    return found


@dataclass(frozen=True)
class _PartFiles:
    """The metadata of a part, and the hashes of its images (`image_hashes`)."""

    rows: list[MetadataRow]
    hashes: Mapping[str, bytes]
    problems: Sequence[str]


def _read_part(folder: Folder, part: str) -> tuple[str, _PartFiles | LedgerError]:
    try:
        rows = read_metadata(folder, part)
    except LedgerError as error:
        return part, error
    hashes: Mapping[str, bytes] = {}
    problems: list[str] = []
    try:
        hashes = image_hashes(folder, part)
    except (LedgerError, StorageError) as error:
        problems.append(str(error))
    carried = dict.fromkeys(name for row in rows for name in row.carried_files)
    problems += (  # they are not decoded: they are what they were
        f"a carried image is missing: {folder.url_of(name)}"
        for name in carried
        if not folder.exists(name)
    )
    return part, _PartFiles(rows, hashes, problems)


def _images_of(rows: Iterable[MetadataRow]) -> list[str]:
    names = (
        name for row in rows for name in (row.edited_file, row.source_file, *row.mask_files) if name
    )
    return list(dict.fromkeys(names))


def _quota_rows(
    resolved: ResolvedJob, repeats: Repeats, folder: Folder, problems: _Problems
) -> list[QuotaRow]:
    """The state of every cell. A cell with more accepted edits than its quota is a problem."""
    if resolved.job.quotas is None:
        return []
    ledger, quotas = Ledger.open(folder), resolved.job.quotas.to_quotas()
    is_open = open_edits(ledger, None).__contains__
    selection = select_round(resolved, quotas, ledger.outcome_of, is_open, repeats)
    rows = quota_table(selection, ledger.outcome_of, is_open)
    for row in rows:
        if row.over_by:
            cell = ", ".join(f"{name}={value}" for name, value in row.cell.items())
            problems.add(
                f"the cell {cell} has {row.accepted} accepted edits, and its quota is {row.quota}: "
                "they were made before it was set. Raise the quota, or give the job another output"
            )
    return rows

"""Checks a run: every planned edit has one outcome or is pending, and the files of accepted edits
are there and readable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from PIL import Image

from fpe_core import FPEError, decode_image
from pipeline.errors import LedgerError, StorageError
from pipeline.job.job import Job
from pipeline.ledger.checked_file import DAMAGED, read_checked
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import Outcome
from pipeline.ledger.parts import (
    METADATA_FILE,
    committing_folders,
    finished_parts,
    image_hash,
    image_hashes,
    uncommitted,
)
from pipeline.manifest.annotations import mask_names
from pipeline.manifest.files import MAX_PROBLEMS
from pipeline.plan.quotas import QuotaRow, quota_table, select_round
from pipeline.plan.resolved_job import resolve_job
from pipeline.storage.folder import Folder

_LEDGER_COLUMNS = ("edit_id", "outcome", "part", "edited_file_name")
_OWN_FILES = ("edited_file_name", "source_file_name", "mask_file_name", "mask_file_names")
_READ_THREADS = 8
_MOST_PIXELS = 2**31  # no limit is needed: the pipeline itself wrote these images


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

    @property
    def ok(self) -> bool:
        """Whether the folder agrees with the ledger. Pending edits are not a problem."""
        return not self.problems_total


def verify_run(job: Job) -> Verification:
    """Checks the run folder of a job against its manifest; writes nothing.

    - planned = accepted + rejected + failed + pending + skipped by quota, by id;
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
    folder = Folder.open(job.output, job.storage_options)
    ledger = Ledger.open(folder)
    problems = _Problems()
    outcome_of, file_of = _read_ledger(ledger, problems)
    images = 0
    with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="verify") as pool:
        seen: set[bytes] = set()
        for part in finished_parts(folder):
            rows = _read_metadata(folder, part, problems)
            committed = part in ledger.parts()
            problems.add(*_differences(rows, committed, outcome_of, file_of, seen))
            hashes = _read_hashes(folder, part, problems) if rows else {}
            images += _check_images(folder, _images_of(rows), hashes, pool, problems)
            carried = dict.fromkeys(name for row in rows for name in row.carried_files)
            for missing in pool.map(lambda name: _missing(folder, name), carried):
                problems.add(*missing)
    for edit_id in file_of.keys() - seen:
        problems.add(
            f"edit {edit_id.hex()} is {outcome_of[edit_id]} in the ledger and in no part's metadata"
        )
    for part in committing_folders(folder, skip=ledger.settled_parts()):
        problems.add(*_orphan_problem(folder, ledger, part))
    return _sum_up(job, outcome_of, images, problems)


@dataclass
class _Problems:
    lines: list[str] = field(default_factory=list)
    total: int = 0

    def add(self, *problems: str) -> None:
        self.total += len(problems)
        self.lines.extend(problems[: max(0, MAX_PROBLEMS - len(self.lines))])


def _read_ledger(ledger: Ledger, problems: _Problems) -> tuple[dict[bytes, str], dict[bytes, int]]:
    """The standing outcome of every edit, and for edits in a part a hash of the file's name."""
    outcome_of: dict[bytes, str] = {}
    file_of: dict[bytes, int] = {}
    for table in ledger.outcomes():
        columns = (table[name].to_pylist() for name in _LEDGER_COLUMNS)
        for edit_id, outcome, part, name in zip(*columns, strict=True):
            before = outcome_of.get(edit_id, Outcome.FAILED)
            if before != Outcome.FAILED:
                problems.add(f"edit {edit_id.hex()} is twice in the ledger, {before} at first")
            outcome_of[edit_id] = Outcome(outcome)
            if part:
                file_of[edit_id] = hash(name)
    return outcome_of, file_of


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


def _read_metadata(folder: Folder, part: str, problems: _Problems) -> list[MetadataRow]:
    try:
        return read_metadata(folder, part)
    except LedgerError as error:
        problems.add(str(error))
        return []


def _read_hashes(folder: Folder, part: str, problems: _Problems) -> dict[str, bytes]:
    """The hashes of the part's images, by path in the run folder."""
    try:
        return image_hashes(folder, part)
    except (LedgerError, StorageError) as error:
        problems.add(str(error))
        return {}


def _differences(
    rows: Iterable[MetadataRow],
    is_committed: bool,
    outcome_of: dict[bytes, str],
    file_of: dict[bytes, int],
    seen: set[bytes],
) -> list[str]:
    """The differences between the rows of a part and the ledger; adds the rows' ids to `seen`."""
    found = []
    for row in rows:
        edit = f"edit {row.edit_id.hex()} ({row.edited_file})"
        if row.edit_id in seen:
            found.append(f"{edit} is twice in the metadata of the parts")
        elif row.edit_id in file_of:
            if file_of[row.edit_id] != hash(row.edited_file):
                found.append(f"{edit}: the ledger names another file")
        elif row.edit_id in outcome_of:
            found.append(f"{edit} is {outcome_of[row.edit_id]} in the ledger")
        elif is_committed:
            found.append(f"{edit} is not in the ledger, which has other edits of its part")
        seen.add(row.edit_id)
    return found


def _orphan_problem(folder: Folder, ledger: Ledger, part: str) -> tuple[str, ...]:
    """A problem if the ledger lacks edits of a finished part, else ()."""
    try:
        lacking = len(uncommitted(folder, ledger, part))
    except LedgerError as error:
        return (str(error),)
    if not lacking:
        return ()
    return (
        f"{part} is finished, and {lacking} of its edits are not in the ledger: run the same job "
        "again, it takes them over",
    )


def _images_of(rows: Iterable[MetadataRow]) -> list[str]:
    names = (
        name for row in rows for name in (row.edited_file, row.source_file, *row.mask_files) if name
    )
    return list(dict.fromkeys(names))


def read_image(folder: Folder, name: str) -> Image.Image:
    """An image of the run. Raises StorageError, and FPEError if it cannot be decoded."""
    return decode_image(folder.read(name), max_pixels=_MOST_PIXELS)


def _check_images(
    folder: Folder,
    names: Iterable[str],
    hashes: Mapping[str, bytes],
    pool: Executor,
    problems: _Problems,
) -> int:
    """Checks the images; returns how many there are. `hashes`: as `image_hashes` returns them."""
    images = 0
    for problem in pool.map(lambda name: _image_problem(folder, name, hashes.get(name)), names):
        images += 1
        problems.add(*problem)
    return images


def _image_problem(folder: Folder, name: str, expected: bytes | None) -> tuple[str, ...]:
    """A problem if the image is missing, is another, or cannot be decoded; else ()."""
    try:
        data = folder.read(name)
        decode_image(data, max_pixels=_MOST_PIXELS)
    except StorageError as error:
        return (f"an image is missing: {error}",)
    except FPEError as error:
        return (f"{name} does not decode: {error}",)
    digest = image_hash(data)
    has_hash_in_name = name.rpartition("/")[0].endswith("/mask")
    if (has_hash_in_name and digest.hex() not in name) or digest != (expected or digest):
        return (f"{name} is not the image that was written there: it has another hash",)
    return ()


def _missing(folder: Folder, name: str) -> tuple[str, ...]:
    """A problem if a file is missing. Carried images are not decoded: they are what they were."""
    return () if folder.exists(name) else (f"a carried image is missing: {folder.url_of(name)}",)


def _sum_up(
    job: Job, outcome_of: dict[bytes, str], images: int, problems: _Problems
) -> Verification:
    """Counts the job's edits by outcome. Reads the manifest once, under quotas twice."""
    counts: Counter[str] = Counter()
    planned = 0
    for edit_id in resolve_job(job).edit_ids():
        planned += 1
        counts[outcome_of.get(edit_id, "pending")] += 1
    known = planned - counts["pending"]
    if sum(counts.values()) != planned:
        raise AssertionError("every planned edit has one outcome or is pending")
    quotas = _quota_rows(job, outcome_of, problems)
    skipped = 0 if job.quotas is None else counts["pending"] - sum(row.to_do for row in quotas)
    return Verification(
        planned=planned,
        accepted=counts[Outcome.ACCEPTED],
        rejected=counts[Outcome.REJECTED],
        failed=counts[Outcome.FAILED],
        pending=counts["pending"] - skipped,
        not_planned=len(outcome_of) - known,
        images_checked=images,
        problems=tuple(problems.lines),
        problems_total=problems.total,
        edits_skipped_by_quota=skipped,
        quotas=tuple(quotas),
    )


def _quota_rows(job: Job, outcome_of: dict[bytes, str], problems: _Problems) -> list[QuotaRow]:
    """The state of every cell. A cell with more accepted edits than its quota is a problem."""
    if job.quotas is None:
        return []

    def is_open(edit_id: bytes) -> bool:
        return edit_id not in outcome_of

    selection = select_round(resolve_job(job), job.quotas.to_quotas(), outcome_of.get, is_open)
    rows = quota_table(selection, outcome_of.get, is_open)
    for row in rows:
        if row.over_by:
            cell = ", ".join(f"{name}={value}" for name, value in row.cell.items())
            problems.add(
                f"the cell {cell} has {row.accepted} accepted edits, and its quota is {row.quota}: "
                "they were made before it was set. Raise the quota, or give the job another output"
            )
    return rows

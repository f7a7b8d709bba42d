"""The first pass over a manifest: checks every row, finds repetitions, keeps nothing else.

Ids of rows and hashes of sources go through a `RepeatFinder`, which uses files if there are many,
so the driver's memory does not depend on the size of the manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pyarrow as pa

from pipeline.ledger.by_id import RowsById
from pipeline.ledger.id_set import RepeatFinder
from pipeline.ledger.outcome import ID_TYPE
from pipeline.manifest.files import ManifestBatch
from pipeline.manifest.rows import Problems, SourceRow, row_id_digest
from pipeline.plan.ids import source_id
from pipeline.plan.resolved_job import PlannedGroup, Repeats, ResolvedJob, source_key

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Survey:
    """The result of the first pass.

    Attributes:
        repeats: the base ids that occur more than once.
        sources: number of different sources of rows with edits.
        digest: 16 bytes that are equal for equal work, however much of it is done already.
    """

    repeats: Repeats
    sources: int
    digest: bytes


def survey_manifest(resolved: ResolvedJob) -> Survey:
    """Reads the manifest once. Raises ManifestError with all problems of all rows."""
    problems = Problems()
    with RepeatFinder() as row_ids, RepeatFinder() as bases, RepeatFinder() as sources:
        surveyor = _Surveyor(resolved, row_ids, bases, sources)
        for batch, rows in resolved.rows(problems, Repeats()):
            surveyor.take(batch, rows)
        _, repeated_ids = row_ids.finish()
        if repeated_ids:  # read again, to report for each of these rows which one it repeats
            problems = Problems()
            for _ in resolved.rows(problems, Repeats(row_ids=repeated_ids)):
                pass
        problems.raise_if_any()
        _, repeated_bases = bases.finish()
        different, _ = sources.finish()
    return Survey(
        Repeats(bases=repeated_bases), different + surveyor.named, surveyor.digest.digest()
    )


_IDS = pa.schema([pa.field("edit_id", ID_TYPE, nullable=False)])


@contextmanager
def planned_ids(resolved: ResolvedJob) -> Iterator[tuple[RowsById, Repeats]]:
    """The ids of all edits of a job, on disk, and what the manifest repeats.

    Reads the manifest once, and again if rows are equal in everything but target prompts. Raises
    ManifestError with all problems of all rows.
    """
    with ExitStack() as stack:
        planned = stack.enter_context(RowsById(_IDS))
        repeats = _plan_without_repeats(resolved, planned)
        if repeats != Repeats():
            problems, planned = Problems(), stack.enter_context(RowsById(_IDS))
            for groups, _ in resolved.groups(problems, repeats):
                planned.add(_ids_of(groups))
            problems.raise_if_any()
        yield planned, repeats


def _plan_without_repeats(resolved: ResolvedJob, planned: RowsById) -> Repeats:
    """Adds all ids as they are if the manifest repeats nothing; returns what it repeats."""
    problems = Problems()
    with RepeatFinder() as row_ids, RepeatFinder() as bases:

        def watch(rows: Sequence[SourceRow]) -> None:
            for row in rows:
                if row.id:
                    row_ids.add(row_id_digest(row.id))
                elif row.edits:
                    bases.add(resolved.base_of(row, source_key(row)))

        for groups, _ in resolved.groups(problems, Repeats(), watch):
            planned.add(_ids_of(groups))
        repeats = Repeats(row_ids.finish()[1], bases.finish()[1])
    if not repeats.row_ids:  # else they are problems too, and are found when it is read again
        problems.raise_if_any()
    return repeats


def _ids_of(groups: Sequence[PlannedGroup]) -> pa.Table:
    ids = [identity for group in groups for identity, _ in group.edits]
    return pa.table([pa.array(ids, ID_TYPE)], schema=_IDS)


class _Surveyor:
    """The state that is kept from batch to batch."""

    def __init__(
        self,
        resolved: ResolvedJob,
        row_ids: RepeatFinder,
        bases: RepeatFinder,
        sources: RepeatFinder,
    ) -> None:
        self.digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self.named = 0
        """Number of sources of rows with an id; no two of them are equal."""
        self._resolved = resolved
        self._row_ids, self._bases, self._sources = row_ids, bases, sources

    def take(self, batch: ManifestBatch, rows: Sequence[SourceRow]) -> None:
        bases = []
        for row in rows:
            key = source_key(row)
            base = self._resolved.base_of(row, key)
            bases.append(base)
            if row.id:
                self._row_ids.add(row_id_digest(row.id))
                self.named += bool(row.edits)
            elif row.edits:
                self._bases.add(base)
                self._sources.add(source_id(key, base))
        for part in (_of_rows(rows, bases), _of_edits(rows), _carried(batch, rows)):
            self.digest.update(part.serialize())


def _of_rows(rows: Sequence[SourceRow], bases: Sequence[bytes]) -> pa.RecordBatch:
    """The values of rows that the digest covers: base id, and what is not part of it."""
    columns: dict[str, pa.Array] = {
        "base": pa.array(bases, ID_TYPE),
        "row": pa.array([row.row for row in rows], pa.int64()),
        "edits": pa.array([len(row.edits) for row in rows], pa.int32()),
        "masks": pa.array([len(row.masks) for row in rows], pa.int32()),
    }
    for name in ("uri", "path", "split"):
        columns[name] = pa.array([getattr(row, name) for row in rows], pa.string())
    masks = [repr((mask.uri, mask.data)).encode() for row in rows for mask in row.masks]
    masks += [repr(row.edit_mask).encode() for row in rows if row.edit_mask is not None]
    if masks:
        digest = hashlib.blake2b(b"".join(masks), digest_size=_DIGEST_BYTES).digest()
        columns["of_masks"] = pa.array([digest] * len(rows), ID_TYPE)
    return pa.RecordBatch.from_pydict(columns)


def _of_edits(rows: Sequence[SourceRow]) -> pa.RecordBatch:
    edits = [edit for row in rows for edit in row.edits]
    columns = {
        "prompt": pa.array([edit.target_prompt for edit in edits], pa.string()),
        "labels": pa.array([edit.labels for edit in edits], pa.list_(pa.string())),
        "edit_type": pa.array([edit.edit_type for edit in edits], pa.string()),
    }
    if any(edit.blend_words for edit in edits):
        words = [edit.blend_words for edit in edits]
        columns["blend_words"] = pa.array(words, pa.list_(pa.string()))
    if any(edit.region_prompts for edit in edits):
        prompts = [edit.region_prompts for edit in edits]
        columns["region_prompts"] = pa.array(prompts, pa.list_(pa.string()))
    return pa.RecordBatch.from_pydict(columns)


def _carried(batch: ManifestBatch, rows: Sequence[SourceRow]) -> pa.RecordBatch:
    """The carried columns of the rows, in one piece."""
    table = batch.carried
    if len(rows) < batch.rows:
        table = table.take(pa.array([row.row - batch.first_row for row in rows], pa.int64()))
    columns = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)

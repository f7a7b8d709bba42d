"""Makes a sample of a run's edits again and compares: `fpe verify --recompute N`.

Each edit goes through the run's own stages again, from the manifest on. It is made alone instead of
in a block, in this process, and written to a scratch folder; the run folder is only read. The new
image is compared with the stored one, within the tolerance in `fpe_core.agreement`. For lossy
formats both have gone through the same encoding (with the job's `images.quality`).

The id of an edit depends on everything that determines its image, except the content behind a URI.
So if an edit differs, its source is compared too, if the run kept it. A source that was replaced
since then is reported as such, and does not count as a difference.
"""

from __future__ import annotations

import heapq
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from fpe_core import CheckpointError, FPEError, decode_image
from fpe_core.agreement import image_difference, image_tolerance
from fpe_core.device import choose_device, choose_dtype
from pipeline.edit.actor import EditActor
from pipeline.edit.settings import EditSettings
from pipeline.errors import JobError, LedgerError, StorageError
from pipeline.job.editor import NO_EDITOR
from pipeline.job.job import Job
from pipeline.ledger.by_id import RowsById, numbered
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import ID_TYPE, FailureCode, Outcome
from pipeline.ledger.parts import METADATA_FILE
from pipeline.manifest.rows import Problems, SourceRow
from pipeline.plan.resolved_job import Repeats, ResolvedJob, resolve_job
from pipeline.plan.survey import planned_ids
from pipeline.plan.work_list import work_schema, work_table
from pipeline.read.decode import DecodeSettings, decode
from pipeline.run.worker_settings import decode_settings
from pipeline.storage.folder import Folder
from pipeline.verify.images import read_image
from pipeline.verify.verify import MetadataRow, read_metadata
from pipeline.write.image_format import ImageFormat
from pipeline.write.metadata import (
    METHOD_COLUMNS,
    PARAMETER_COLUMNS,
    MetadataLayout,
    parameters_of_columns,
)

_NOT_THE_MODELS = frozenset(
    {
        FailureCode.SOURCE_MISSING,
        FailureCode.SOURCE_FORBIDDEN,
        FailureCode.SOURCE_THROTTLED,
        FailureCode.DECODE_FAILED,
        FailureCode.IMAGE_TOO_LARGE,
        FailureCode.OUT_OF_MEMORY,
    }
)
"""Failures of an edit that is made again that are no evidence against the stored one."""
_FORMATS: tuple[Literal["png", "jpeg", "webp"], ...] = ("png", "jpeg", "webp")


class ComparisonVerdict(StrEnum):
    """The result of comparing one edit of the sample. NOT_MADE: it could not be made again."""

    EQUAL = "equal"
    WITHIN_TOLERANCE = "within_tolerance"
    DIFFERENT = "different"
    NOT_MADE = "not_made"


@dataclass(frozen=True)
class EditComparison:
    """The comparison of one edit. `file` is relative to the run folder; `detail` is a message."""

    edit_id: bytes
    file: str
    verdict: ComparisonVerdict
    detail: str = ""

    def __str__(self) -> str:
        what = (
            "could not be made again" if self.verdict == ComparisonVerdict.NOT_MADE else "differs"
        )
        return f"edit {self.edit_id.hex()} ({self.file}) {what}: {self.detail}"


@dataclass(frozen=True)
class Recomputation:
    """All comparisons, in the order of the sample, and the device and dtype they were made with."""

    comparisons: tuple[EditComparison, ...]
    device: str
    dtype: str

    def of(self, verdict: ComparisonVerdict) -> tuple[EditComparison, ...]:
        return tuple(item for item in self.comparisons if item.verdict == verdict)

    @property
    def compared(self) -> int:
        return len(self.comparisons) - len(self.of(ComparisonVerdict.NOT_MADE))

    @property
    def ok(self) -> bool:
        """Whether no edit differs. An edit that cannot be made again does not count as
        different."""
        return not self.of(ComparisonVerdict.DIFFERENT)


def recompute_sample(
    job: Job,
    count: int,
    *,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recomputation:
    """Makes `count` accepted edits of a job again (all, if there are fewer) and compares them.

    `device`: used instead of the job's. `progress` is called with the number of edits done and the
    number of all. Raises JobError, ManifestError, LedgerError, StorageError, and CheckpointError if
    the edits were made with a checkpoint that is not the job's present one.
    """
    folder = Folder.open(job.output, job.storage_options)
    if job.editor == NO_EDITOR:
        raise JobError("the job makes no edits (editor: none), so there is nothing to make again")
    resolved = resolve_job(job)
    torch_device = choose_device(device or job.model.device)
    dtype = choose_dtype(job.model.dtype, torch_device)
    sample, repeats = _choose(folder, resolved, count)
    comparisons: list[EditComparison] = []
    if sample:
        is_fpe = resolved.parameters.editor is None
        columns = PARAMETER_COLUMNS if is_fpe else METHOD_COLUMNS
        rows = _stored_rows(folder, sample, columns)
        work = _work_of_each(resolved, rows, repeats)
        with TemporaryDirectory(prefix="fpe-recompute-") as scratch:
            bench = _Recomputer(folder, resolved, Folder.open(scratch), str(torch_device), dtype)
            for edit_id in sample:
                comparisons.append(bench.compare(rows[edit_id], work[edit_id]))
                if progress is not None:
                    progress(len(comparisons), len(sample))
    return Recomputation(tuple(comparisons), str(torch_device), str(dtype).removeprefix("torch."))


def choose_sample(edits: Iterable[tuple[bytes, str]], count: int) -> dict[bytes, str]:
    """Chooses `count` edits, or all: from all parts in turn, those with the lowest ids first.

    `edits`: (id, part), sorted by id; the result maps ids to parts. Ids are hashes, so the choice
    is as good as random. It is the same every time. Keeps a number for each part and `count` edits.
    """
    taken: Counter[str] = Counter()

    def ranked() -> Iterator[tuple[int, bytes, str]]:
        for edit_id, part in edits:
            yield taken[part], edit_id, part
            taken[part] += 1

    return {edit_id: part for _, edit_id, part in heapq.nsmallest(count, ranked())}


_ACCEPTED = pa.schema([pa.field("edit_id", ID_TYPE, nullable=False), ("part", pa.string())])


def _choose(folder: Folder, resolved: ResolvedJob, count: int) -> tuple[dict[bytes, str], Repeats]:
    """A sample of the accepted edits of the job, and what its manifest repeats.

    Raises CheckpointError as `recompute_sample` does.
    """
    parts: set[str] = set()
    with planned_ids(resolved) as (planned, repeats), RowsById(_ACCEPTED) as accepted:
        for outcomes in Ledger(folder).outcomes(["edit_id", "outcome", "part"]):
            table = outcomes.filter(pc.equal(outcomes["outcome"], Outcome.ACCEPTED.value))
            accepted.add(table)
            parts.update(pc.unique(table["part"]).to_pylist())
        sample = choose_sample(_accepted_of_job(planned, accepted), count)
    if parts and not sample:
        _refuse_another_checkpoint(folder, resolved, parts)
    return sample, repeats


def _accepted_of_job(planned: RowsById, accepted: RowsById) -> Iterator[tuple[bytes, str]]:
    """(id, part) of the accepted edits that are planned, sorted by id."""
    for ours, theirs in zip(planned.buckets(), accepted.buckets(), strict=True):
        ids, (in_plan, in_ledger) = numbered(ours, theirs)
        is_planned = np.zeros(len(ids), bool)
        is_planned[in_plan] = True
        row_of = np.full(len(ids), -1, np.int64)
        row_of[in_ledger] = np.arange(len(in_ledger))  # of several the last counts
        chosen = np.flatnonzero(is_planned & (row_of >= 0))
        parts = theirs["part"].take(pa.array(row_of[chosen])).to_pylist()
        yield from zip((ids[place] for place in chosen), parts, strict=True)


def _refuse_another_checkpoint(folder: Folder, resolved: ResolvedJob, parts: Iterable[str]) -> None:
    """Raises CheckpointError if no part was made with the job's checkpoint."""
    found: set[str] = set()
    for part in sorted(parts):
        file = io.BytesIO(folder.read(f"{part}/{METADATA_FILE}"))
        if "checkpoint_fingerprint" in pq.read_schema(file).names:
            column = pq.read_table(file, columns=["checkpoint_fingerprint"])[0]
            found.update(column.unique().to_pylist())
    if found and resolved.context.fingerprint not in found:
        raise CheckpointError(
            f"{resolved.job.model.checkpoint} is another checkpoint now "
            f"({resolved.context.fingerprint}) than the one that the edits in {folder.url} were "
            f"made with ({', '.join(sorted(found))}): they cannot be made again with it; name "
            "the one they were made with (model.checkpoint, model.revision), and its LoRAs, "
            "embeddings and autoencoder"
        )


def _stored_rows(
    folder: Folder, sample: Mapping[bytes, str], columns: Sequence[str]
) -> dict[bytes, MetadataRow]:
    """The metadata rows of the sample; file names are "" for an edit without a row."""
    rows = {edit_id: MetadataRow(edit_id, "", "") for edit_id in sample}
    for part in sorted(set(sample.values())):
        try:
            rows |= {
                row.edit_id: row
                for row in read_metadata(folder, part, columns)
                if sample.get(row.edit_id) == part
            }
        except LedgerError:
            continue  # `verify_run` reports it
    return rows


def _work_of_each(
    resolved: ResolvedJob, rows: Mapping[bytes, MetadataRow], repeats: Repeats
) -> dict[bytes, pa.Table]:
    """A separate work list for each edit, with one row that has only this edit.

    An edit that was accepted on a retry gets the parameters in its metadata, because they differ
    from the job's.
    """
    schema, problems = work_schema(pa.schema([]), inputs=resolved.inputs), Problems()
    work: dict[bytes, pa.Table] = {}
    for groups, carried in resolved.groups(problems, repeats):
        for group in groups:
            for edit in group.edits:
                if edit[0] in rows:
                    source = _as_made(group.source, rows[edit[0]])
                    alone = replace(group, edits=(edit,), source=source)
                    work[edit[0]] = work_table([alone], carried, (), schema)
    problems.raise_if_any()
    return work


def _as_made(source: SourceRow, stored: MetadataRow) -> SourceRow:
    if not stored.columns:
        return source
    return replace(source, parameters=parameters_of_columns(stored.columns, source.parameters))


class _Recomputer:
    """Makes edits again, one at a time, with the stages of a run, and compares each."""

    def __init__(
        self,
        folder: Folder,
        resolved: ResolvedJob,
        scratch: Folder,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        """Loads the model. Raises CheckpointError."""
        self._folder, self._scratch = folder, scratch
        self._dtype = dtype
        self._quality = resolved.job.images.quality
        self._decoding: DecodeSettings = decode_settings(resolved.job)
        model = resolved.job.model
        self._actor = EditActor(
            EditSettings(
                output=scratch.url,
                checkpoint=model.checkpoint,
                checkpoint_fingerprint=resolved.context.fingerprint,
                device=device,
                dtype=model.dtype,
                allow_pickle=model.allow_pickle,
                revision=model.revision,
                config=model.config,
                add_ons=model.add_ons,
                text_settings=model.text_settings,
                store=resolved.job.model_store,
                max_rows=resolved.job.resources.max_rows,
                image_format=ImageFormat("png"),
                layout=MetadataLayout(
                    resolved.label_names,
                    names_editor=resolved.parameters.editor is not None,
                ),
            )
        )

    def compare(self, stored: MetadataRow, work: pa.Table) -> EditComparison:
        """Makes the only edit of a work list again, and compares it with the stored one."""

        def result(verdict: ComparisonVerdict, detail: str = "") -> EditComparison:
            return EditComparison(stored.edit_id, stored.edited_file, verdict, detail)

        if not stored.edited_file:
            return result(
                ComparisonVerdict.DIFFERENT, "the metadata of its part does not name its image"
            )
        (outcome,) = self._actor(decode(work, self._decoding)).to_pylist()
        if outcome["outcome"] != Outcome.ACCEPTED:
            excused = outcome["reason"] in _NOT_THE_MODELS
            verdict = ComparisonVerdict.NOT_MADE if excused else ComparisonVerdict.DIFFERENT
            return result(verdict, f"{outcome['reason']}: {outcome['message']}")
        (again,) = read_metadata(self._scratch, outcome["part"])
        verdict, detail = self._judge(stored.edited_file, again.edited_file, self._dtype)
        (is_synthetic,) = work["synthetic"].to_pylist()
        if not stored.source_file:
            return result(verdict, detail)
        # No tolerance for the model's rounding: a real source never went through the model.
        source_dtype = self._dtype if is_synthetic else torch.float32
        source, source_detail = self._judge(stored.source_file, again.source_file, source_dtype)
        if source == ComparisonVerdict.DIFFERENT:
            if verdict != ComparisonVerdict.DIFFERENT:
                return result(source, f"its source, {stored.source_file}: {source_detail}")
            if not is_synthetic:
                return result(
                    ComparisonVerdict.NOT_MADE, f"its source is another one now: {source_detail}"
                )
        return result(verdict, detail)

    def _judge(
        self, stored_file: str, made_file: str, dtype: torch.dtype
    ) -> tuple[ComparisonVerdict, str]:
        """Compares a stored image with the new one. The text says by how much they differ."""
        try:
            stored = read_image(self._folder, stored_file)
        except (StorageError, FPEError) as error:
            return ComparisonVerdict.DIFFERENT, f"cannot be read: {error}"
        made = read_image(self._scratch, made_file)
        if stored.size != made.size:
            sizes = (f"{image.width} x {image.height} px" for image in (stored, made))
            return ComparisonVerdict.DIFFERENT, " instead of ".join(sizes)
        encoded = _as_stored(made, _format_of(stored_file, self._quality))
        difference, loss = image_difference(stored, encoded), image_difference(made, encoded)
        if not difference.largest_levels:
            return ComparisonVerdict.EQUAL, ""
        tolerance = image_tolerance(dtype, loss if loss.largest_levels else None)
        verdict = (
            ComparisonVerdict.WITHIN_TOLERANCE
            if tolerance.admits(difference)
            else ComparisonVerdict.DIFFERENT
        )
        return verdict, str(difference)


def _format_of(file: str, quality: int) -> ImageFormat:
    """The format of a file by its name; the job's `images.format` may have changed since."""
    extension = file.rpartition(".")[2]
    formats = (ImageFormat(name, quality) for name in _FORMATS)
    return next((known for known in formats if known.extension == extension), ImageFormat())


def _as_stored(image: Image.Image, image_format: ImageFormat) -> Image.Image:
    """The image after encoding and decoding, like a stored image."""
    pixels = image.width * image.height
    return decode_image(image_format.encode(image), max_pixels=pixels)

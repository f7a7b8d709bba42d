"""Plans a job: makes the ids of all its edits, and lists those that the ledger does not have.

The manifest is streamed twice. The first pass checks everything (`survey`), so that nothing is
written if the manifest has a mistake. The second pass makes the ids, and counts and writes the
edits that are left as the work list, Parquet files in `<run>/.plan/<plan_id>/`. The plan's id comes
from its content, so planning the same work again finds its files. Under quotas a pass between the
two selects the edits of a round. The driver keeps the ids of the ledger, 17 bytes each, and those
of a round, 17 to 20 bytes each, but no rows and no other ids.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pyarrow as pa

from fpe_core import CheckpointError, EditParameters
from fpe_core.scores.edit_scores import LEAST_PX
from fpe_core.speed import approximation_of
from pipeline.errors import JobError
from pipeline.in_order import in_order
from pipeline.job.editor import NO_EDITOR
from pipeline.job.job import Job
from pipeline.judge.models import fingerprints
from pipeline.ledger.id_set import IdSet, which_are_in
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import short_message
from pipeline.manifest.annotations import AnnotationSettings
from pipeline.manifest.embedded import Embedded
from pipeline.manifest.prompts import lacks_prompt
from pipeline.manifest.rows import SourceRow
from pipeline.plan.group_shape import GroupShape, MethodShape, stand_in
from pipeline.plan.ids import canonical_json
from pipeline.plan.quotas import (
    QuotaRow,
    Selection,
    quota_table,
    refuse_unknown_columns,
    select_round,
)
from pipeline.plan.resolved_job import PlannedGroup, ResolvedJob, resolve_job
from pipeline.plan.survey import Survey, survey_manifest
from pipeline.plan.work_list import (
    PendingBatch,
    all_masks,
    pending_batches,
    work_files,
    work_schema,
)
from pipeline.redact import redact_url
from pipeline.storage.allowed_sources import SourceRules
from pipeline.storage.folder import Folder

PLAN_FOLDER = ".plan"
PLAN_FILE = "plan.json"
_PLAN_ID_BYTES = 8
_WORK_FORMAT = "without images"
"""What the work list is like: files of a plan with the same id are taken as they are. Until 0.3.0
it had the images that lie in the manifest."""
_GC_THRESHOLDS = (100_000, 50, 100)
_log = logging.getLogger(__name__)
_BYTES_PER_PIXEL = {"png": 1.6, "jpeg": 0.5, "webp": 0.3}  # photographs at quality 95, roughly


@dataclass(frozen=True)
class Plan:
    """The numbers of a job's work, and the paths of its work list.

    `edits_total`, `sources` and `parameters` are those of the whole job; `groups_pending`,
    `unet_rows` and `output_bytes` (an estimate) those of the work that is left. `shapes` counts the
    pending groups by their shape, which decides their cost.
    `work_files` are paths in the run folder; () if nothing is left or the plan was not written.
    `carried_schema` has the columns of the work list's `carried`, and is None if there are none.
    `rows_repeated`: how many rows of the manifest equal an earlier row in everything; their edits
    are made too.
    `sources_refused`: how many pending sources will fail as source_forbidden, judging by their URIs
    (`images.allowed_sources`).
    `edits_not_applicable`: how many pending edits the editor cannot make, because their rows lack
    something; `first_not_applicable` says what the first of them lacks.
    `label_types` are the types of labels that are not text, `label_classes` the names of those that
    are class labels. `has_edit_types`: whether the manifest
    has a type for each edit. `approximation` names the approximations of the edits, "" if exact.

    Under quotas it is the plan of one round (`quotas`). `round` has its edits, and
    `edits_skipped_by_quota` counts the edits that could be made but are not in this round; a later
    round may take some of them.
    """

    plan_id: str
    edits_total: int
    edits_done: int
    groups_pending: int
    sources: int
    unet_rows: int
    output_bytes: int
    work_files: tuple[str, ...]
    carried_schema: pa.Schema | None
    label_names: tuple[str, ...]
    fingerprint: str
    parameters: EditParameters
    sources_refused: int = 0
    edits_not_applicable: int = 0
    first_not_applicable: str = ""
    rows_repeated: int = 0
    edits_skipped_by_quota: int = 0
    round: Selection | None = None
    approximation: str = ""
    annotations: AnnotationSettings | None = None
    label_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    label_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_edit_types: bool = False
    shapes: Mapping[GroupShape, int] = field(default_factory=dict)
    judge_fingerprints: Mapping[str, str] = field(default_factory=dict)
    embedded: Embedded | None = field(default=None, compare=False)
    """Where the images are that lie in the manifest itself; None if none do."""

    @property
    def makes_edits(self) -> bool:
        """False for a job with `editor: none`: its outputs are copies of their sources."""
        return self.fingerprint != NO_EDITOR

    @property
    def edits_pending(self) -> int:
        return self.edits_total - self.edits_done - self.edits_skipped_by_quota

    @property
    def backward_passes(self) -> int:
        """How many of the pending edits' UNet rows a backward pass follows."""
        return sum(shape.backward_passes * count for shape, count in self.shapes.items())


@contextmanager
def relaxed_gc() -> Iterator[None]:
    """Raises the garbage collector's threshold while planning: with the default a third of the time
    goes into collections that find nothing."""
    before = gc.get_threshold()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@relaxed_gc()
def make_plan(
    job: Job,
    ledger: Ledger | None = None,
    *,
    write: bool = True,
    only: AbstractSet[bytes] | None = None,
) -> Plan:
    """Checks the whole manifest, counts, and (with `write`) writes the work list.

    `only`: plan these edits, whether done or not, and no others. Under quotas the plan is that of
    the next round, taken from all edits or from `only`. `ledger`: None: it is read from the job's
    output. Raises JobError, ManifestError, LedgerError and StorageError; after an error nothing has
    been written.
    """
    folder = Folder.open(job.output, job.storage_options)
    ledger = Ledger.open(folder) if ledger is None else ledger
    resolved = resolve_job(job)
    judge_fingerprints = _checked_judge(job, resolved.parameters)
    embedded = resolved.embedded() if write else None  # as it is before it is read
    if job.quotas is not None:
        refuse_unknown_columns(resolved, job.quotas.by)  # before the manifest is read
    survey = survey_manifest(resolved)
    selection = None
    if job.quotas is not None:
        quotas, is_open = job.quotas.to_quotas(), open_edits(ledger, only).__contains__
        selection = select_round(resolved, quotas, ledger.outcome_of, is_open, survey.repeats)
        only = selection.edits
    left_out = ledger.done_ids() if only is None else AllBut(only)
    plan_id = _plan_id(survey, left_out)
    counts = _Counts(resolved, SourceRules(job.images.allowed_sources))
    batches = counts.watch(pending_batches(resolved, left_out, survey.repeats))
    schema = work_schema(
        resolved.carried_schema, has_masks=resolved.has_masks, inputs=resolved.inputs
    )

    def write_file(numbered: tuple[int, bytes]) -> str:
        name = f"{PLAN_FOLDER}/{plan_id}/work-{numbered[0]:05d}.parquet"
        folder.write_if_absent(name, numbered[1])
        return name

    files = enumerate(work_files(batches, schema) if write else _nothing(batches))
    with ThreadPoolExecutor(1, thread_name_prefix="plan") as pool:  # while the next one is made
        names = list(in_order(pool, write_file, files, 2))
    plan = _plan_of(resolved, plan_id, survey.sources, counts, selection)
    plan = replace(plan, judge_fingerprints=judge_fingerprints)
    if not names:
        return plan
    plan = replace(plan, work_files=tuple(names), embedded=embedded)
    folder.write_if_absent(
        f"{PLAN_FOLDER}/{plan.plan_id}/{PLAN_FILE}", plan_summary(plan, len(ledger.done_ids()))
    )
    return plan


def _checked_judge(job: Job, parameters: EditParameters) -> dict[str, str]:
    """Fingerprints of the judge's models; {} without a judge.

    Raises JobError if a model does not exist, or a score needs larger images.
    """
    if job.judge is None:
        return {}
    side_px = min(parameters.width_px, parameters.height_px)
    for score, least_px in LEAST_PX.items():
        if score in job.judge.computed_scores and side_px < least_px:
            raise JobError(
                f"judge.scores: {score} needs at least {least_px} px on both sides, and edits have "
                f"{parameters.width_px} x {parameters.height_px}; choose scores without it, or a "
                "larger edit.size_px"
            )
    try:
        return fingerprints(job.judge, job.model_store)
    except CheckpointError as error:
        raise JobError(str(error)) from error


def _nothing(batches: Iterable[PendingBatch]) -> Iterator[bytes]:
    """Consumes the batches, for their counts only."""
    for _ in batches:
        yield from ()


def plan_summary(plan: Plan, ledger_edits: int) -> bytes:
    """plan.json: the plan's numbers, and how many edits the ledger held when it was made."""
    values = {
        "plan_id": plan.plan_id,
        "edits_total": plan.edits_total,
        "edits_done": plan.edits_done,
        "edits_pending": plan.edits_pending,
        "edits_skipped_by_quota": plan.edits_skipped_by_quota,
        "groups_pending": plan.groups_pending,
        "sources": plan.sources,
        "unet_rows": plan.unet_rows,
        "edits_not_applicable": plan.edits_not_applicable,
        "ledger_edits": ledger_edits,
        "work_files": list(plan.work_files),
        "label_names": list(plan.label_names),
        "checkpoint_fingerprint": plan.fingerprint,
        "parameters": plan.parameters.to_dict(),
    }
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def open_edits(ledger: Ledger, only: AbstractSet[bytes] | None) -> Container[bytes]:
    """The edits that a plan may take: those of `only`, or all that are not in the ledger."""
    return AllBut(ledger.done_ids()) if only is None else only


def quota_rows(
    plan: Plan, ledger: Ledger, only: AbstractSet[bytes] | None = None
) -> list[QuotaRow]:
    """How full the cells of a plan's quotas are now; [] without quotas.

    `only`: the edits that the plan was limited to and that have no new outcome yet; None: no limit.
    """
    if plan.round is None:
        return []
    return quota_table(plan.round, ledger.outcome_of, open_edits(ledger, only).__contains__)


@dataclass(frozen=True)
class AllBut(Container[bytes]):
    """All edits except these."""

    edit_ids: AbstractSet[bytes]

    def __contains__(self, edit_id: object) -> bool:
        return edit_id not in self.edit_ids

    def has(self, edit_ids: Sequence[bytes]) -> list[bool]:
        """For each of many edits, whether it is one of these."""
        return [not is_excepted for is_excepted in which_are_in(edit_ids, self.edit_ids)]


@dataclass
class _Counts:
    """The counts of the second pass."""

    resolved: ResolvedJob
    rules: SourceRules
    edits_total: int = 0
    rows_repeated: int = 0
    edits_pending: int = 0
    groups_pending: int = 0
    shapes: Counter[GroupShape] = field(default_factory=Counter)
    output_pixels: int = 0
    not_applicable: int = 0
    first_not_applicable: str = ""
    refused: int = 0
    first_refused: str = ""

    def watch(self, batches: Iterable[PendingBatch]) -> Iterator[PendingBatch]:
        """Counts the batches as they pass through."""
        for batch in batches:
            self.edits_total += batch.edits_total
            self.rows_repeated += batch.rows_repeated
            for group in batch.groups:
                self._add(group)
            yield batch

    def _add(self, group: PlannedGroup) -> None:
        pending, parameters = len(group.edits), group.source.parameters
        self.edits_pending += pending
        self.groups_pending += 1
        made = group
        if self.resolved.job.editor != NO_EDITOR:
            made, reasons = applicable(group)
            self.not_applicable += len(reasons)
            if reasons and not self.first_not_applicable:
                shown = short_message(f"row {group.source.row}: {reasons[0]}")
                self.first_not_applicable = shown
        if self.resolved.job.editor != NO_EDITOR and made.edits:
            self.shapes[shape_of(made)] += 1
        images = len(made.edits) + (1 if self.resolved.job.images.keep_source else 0)
        self.output_pixels += images * parameters.width_px * parameters.height_px
        _count_refused(self, self.rules, group.source)


def applicable(group: PlannedGroup) -> tuple[PlannedGroup, list[str]]:
    """The group without the edits that its editor cannot make, and why it cannot."""
    source = group.source
    if source.parameters.can_make_any and all(edit.target_prompt for _, edit in group.edits):
        return group, []
    edits, reasons = [], []
    for identity, edit in group.edits:
        reason = lacks_prompt(
            source.parameters.method, edit.target_prompt
        ) or source.parameters.not_applicable(
            source.source_prompt,
            edit.target_prompt,
            stand_in(
                edit.blend_words,
                edit.region_prompts,
                has_mask=source.edit_mask is not None,
            ),
            synthetic=source.is_synthetic,
        )
        if reason:
            reasons.append(reason)
        else:
            edits.append((identity, edit))
    return replace(group, edits=tuple(edits)), reasons


def shape_of(group: PlannedGroup) -> GroupShape:
    """The shape of a group with its edits."""
    source = group.source
    if source.parameters.editor is None and source.parameters.inversion == "direct":
        return GroupShape.of(source.parameters, len(group.edits), synthetic=source.is_synthetic)
    has_mask = source.edit_mask is not None
    return MethodShape.of_edits(
        source.parameters,
        [
            stand_in(edit.blend_words, edit.region_prompts, has_mask=has_mask)
            for _, edit in group.edits
        ],
        source_prompt=source.source_prompt,
        synthetic=source.is_synthetic,
    )


def _count_refused(counts: _Counts, rules: SourceRules, source: SourceRow) -> None:
    """Counts a source if the rules forbid reading it or one of its masks."""
    uris = [uri for uri in (source.uri, *(mask.uri for mask in all_masks(source))) if uri]
    refused = next(((uri, refusal) for uri in uris if (refusal := rules.refusal(uri))), None)
    if refused is not None:
        counts.refused += 1
        shown = f"that of row {source.row}, {redact_url(refused[0])}: {refused[1]}"
        counts.first_refused = counts.first_refused or shown


def _plan_id(survey: Survey, left_out: IdSet | AllBut) -> str:
    """An id that is equal for equal work: equal manifests and jobs, the same edits left out."""
    if isinstance(left_out, AllBut):
        digest, ids = hashlib.blake2b(digest_size=16), left_out.edit_ids
        if isinstance(ids, IdSet):
            ids.compact()  # then they are sorted
        for packed in ids.packed() if isinstance(ids, IdSet) else sorted(ids):
            digest.update(packed)
        which = ("only", len(ids), digest.hexdigest())
    else:
        which = ("but", len(left_out), left_out.digest().hex())
    text = canonical_json([_WORK_FORMAT, survey.digest.hex(), *which])
    return hashlib.blake2b(text.encode(), digest_size=_PLAN_ID_BYTES).hexdigest()


def _plan_of(
    resolved: ResolvedJob, plan_id: str, sources: int, counts: _Counts, selection: Selection | None
) -> Plan:
    carried = resolved.carried_schema
    skipped = 0 if selection is None else selection.edits_skipped_by_quota
    if counts.refused:
        _log.warning(
            "%d sources will fail as source_forbidden; the first is %s",
            counts.refused,
            counts.first_refused,
        )
    return Plan(
        plan_id=plan_id,
        edits_total=counts.edits_total,
        edits_done=counts.edits_total - counts.edits_pending - skipped,
        groups_pending=counts.groups_pending,
        sources=sources,
        unet_rows=sum(shape.unet_rows * count for shape, count in counts.shapes.items()),
        output_bytes=int(counts.output_pixels * _BYTES_PER_PIXEL[resolved.job.images.format]),
        work_files=(),
        carried_schema=carried if len(carried) else None,
        label_names=resolved.label_names,
        fingerprint=resolved.context.fingerprint,
        parameters=resolved.parameters,
        sources_refused=counts.refused,
        edits_not_applicable=counts.not_applicable,
        first_not_applicable=counts.first_not_applicable,
        rows_repeated=counts.rows_repeated,
        edits_skipped_by_quota=skipped,
        round=selection,
        approximation=approximation_of(resolved.parameters, resolved.job.edit.speed),
        annotations=resolved.annotations,
        label_types=resolved.label_types,
        label_classes=resolved.label_classes,
        has_edit_types=resolved.has_edit_types,
        shapes=dict(counts.shapes),
    )

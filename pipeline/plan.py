"""Which edits a job means and which are left: ids for every edit, less what the ledger has.

The manifest is streamed twice. The first time everything is checked and counted, so that nothing is
written for a manifest with a mistake in it; the second time what is left is written as the work
list, Parquet files in `<run>/.plan/<plan_id>/`. The plan's id comes from its content: planning the
same work again finds its files. The driver holds ids and never rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from fpe_core import EditParameters
from pipeline.annotate import AnnotationSettings
from pipeline.ids import canonical_json
from pipeline.intent import NO_EDITOR, Intent, PlannedGroup, understand
from pipeline.job import Job
from pipeline.ledger import Ledger
from pipeline.manifest_row import Problems, SourceRow
from pipeline.quota_cells import select_round
from pipeline.quotas import QuotaRow, Selection, quota_table
from pipeline.redact import redact_url
from pipeline.source_rules import SourceRules
from pipeline.storage import Folder
from pipeline.work_list import work_files, work_schema, work_table

PLAN_FOLDER = ".plan"
PLAN_FILE = "plan.json"
_PLAN_ID_BYTES = 8
_log = logging.getLogger(__name__)
_BYTES_PER_PIXEL = {"png": 1.6, "jpeg": 0.5, "webp": 0.3}  # of photographs at quality 95, roughly


@dataclass(frozen=True)
class Plan:
    """A job's work in numbers, and where the work list lies.

    `edits_total`, `sources` and `parameters` are the whole job's; `groups_pending`, `unet_rows` and
    `output_bytes` (an estimate) are of what is left. `work_files` are paths in the run folder, none
    where nothing is left or the plan was not written. `carried_schema` has the columns of the work
    list's `carried`, and is None where nothing is carried. `sources_refused` of the pending sources
    will fail as source_forbidden, as far as their URIs tell (`images.allowed_sources`).

    Under quotas it is the plan of a round (`quotas`): `round` are its edits, and `edits_spared`
    those that could be made and are not, which a later round may take.
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
    edits_spared: int = 0
    round: Selection | None = None
    annotations: AnnotationSettings | None = None

    @property
    def makes_edits(self) -> bool:
        """False for a job with `editor: none`: its outputs are copies of their sources."""
        return self.fingerprint != NO_EDITOR

    @property
    def edits_pending(self) -> int:
        return self.edits_total - self.edits_done - self.edits_spared


def make_plan(
    job: Job,
    ledger: Ledger | None = None,
    *,
    write: bool = True,
    only: AbstractSet[bytes] | None = None,
) -> Plan:
    """Checks the whole manifest, counts, and (with `write`) writes the work list.

    `only`: plan these edits, done or not, and leave out all others. Under quotas the plan is of the
    next round, of all edits or of `only`. `ledger` is read from the job's output where it is not
    given. Raises JobError, ManifestError, LedgerError and StorageError;
    after an error nothing has been written.
    """
    folder = Folder.open(job.output, job.storage_options)
    ledger = Ledger.open(folder) if ledger is None else ledger
    intent = understand(job)
    selection = None
    if job.quotas is not None:
        quotas, is_open = job.quotas.to_quotas(), open_edits(ledger, only).__contains__
        selection = select_round(intent, quotas, ledger.outcome_of, is_open)
        only = selection.edits.keys()
    left_out = ledger.done_ids() if only is None else AllBut(only)
    plan = _plan_of(intent, _survey(intent, left_out), selection)
    if not write or not plan.edits_pending:
        return plan
    names = []
    for number, data in enumerate(work_files(intent, left_out)):
        names.append(f"{PLAN_FOLDER}/{plan.plan_id}/work-{number:05d}.parquet")
        folder.write_if_absent(names[-1], data)
    plan = replace(plan, work_files=tuple(names))
    folder.write_if_absent(
        f"{PLAN_FOLDER}/{plan.plan_id}/{PLAN_FILE}", plan_summary(plan, len(ledger.done_ids()))
    )
    return plan


def plan_summary(plan: Plan, ledger_edits: int) -> bytes:
    """plan.json: the plan's numbers, and how many edits the ledger held when it was made."""
    values = {
        "plan_id": plan.plan_id,
        "edits_total": plan.edits_total,
        "edits_done": plan.edits_done,
        "edits_pending": plan.edits_pending,
        "edits_spared": plan.edits_spared,
        "groups_pending": plan.groups_pending,
        "sources": plan.sources,
        "unet_rows": plan.unet_rows,
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
    """How full the cells of a plan's quotas are by now; [] without quotas.

    `only`: of the edits that the plan was limited to, those that were not made meanwhile.
    """
    if plan.round is None:
        return []
    return quota_table(plan.round, ledger.outcome_of, open_edits(ledger, only).__contains__)


def unet_rows_of(
    parameters: EditParameters, edits: int, *, synthetic: bool, source_prompt: str
) -> int:
    """UNet rows of a group, as `fpe_core.editor` says: its source once, then every edit.

    A row that stops at the last replaced layer counts as one. `layers` that name none of the
    checkpoint's layers save the source's own rows, which is not foreseen here.
    """
    steps, replaced_steps = parameters.steps, parameters.replaced_steps
    if not parameters.is_guided:
        return (steps if synthetic else steps + replaced_steps) + steps * edits
    # The unconditional row of the first step is one for all edits, and the source's own if it has
    # such a row.
    if synthetic:
        source = 2 * steps
    elif replaced_steps and source_prompt == parameters.negative_prompt:
        source = steps + replaced_steps
    else:
        source = steps + replaced_steps + 1
    return source + (2 * steps - 1) * edits


@dataclass(frozen=True)
class AllBut(Container[bytes]):
    """Every edit but these."""

    edit_ids: AbstractSet[bytes]

    def __contains__(self, edit_id: object) -> bool:
        return edit_id not in self.edit_ids


@dataclass
class _Survey:
    """What the first pass counts."""

    edits_total: int = 0
    edits_done: int = 0
    groups_pending: int = 0
    unet_rows: int = 0
    output_pixels: int = 0
    refused: int = 0
    first_refused: str = ""
    sources: set[bytes] = field(default_factory=set)
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=_PLAN_ID_BYTES))


def _survey(intent: Intent, done: Container[bytes]) -> _Survey:
    """The first pass. Raises ManifestError with all problems of all rows."""
    problems = Problems()
    survey = _Survey()
    schema = work_schema(intent.carried_schema, has_masks=intent.has_masks)
    rules = SourceRules(intent.job.images.allowed_sources)
    for groups, carried in intent.groups(problems):
        for group in groups:
            pending = sum(identity not in done for identity, _ in group.edits)
            survey.edits_total += len(group.edits)
            survey.edits_done += len(group.edits) - pending
            survey.sources.add(group.source_id)
            if pending:
                _count_pending(survey, intent, group, pending)
                _count_refused(survey, rules, group.source)
        if not problems.total:
            table = work_table(groups, carried, done, schema).drop_columns(["image_bytes"])
            for batch in table.combine_chunks().to_batches():
                survey.digest.update(batch.serialize())
    problems.raise_if_any()
    if survey.refused:
        _log.warning(
            "%d sources will fail as source_forbidden; the first is %s",
            survey.refused,
            survey.first_refused,
        )
    return survey


def _count_pending(survey: _Survey, intent: Intent, group: PlannedGroup, pending: int) -> None:
    parameters = group.source.parameters
    survey.groups_pending += 1
    if intent.job.editor != NO_EDITOR:
        survey.unet_rows += unet_rows_of(
            parameters,
            pending,
            synthetic=group.source.is_synthetic,
            source_prompt=group.source.source_prompt,
        )
    images = pending + (1 if intent.job.images.keep_source else 0)
    survey.output_pixels += images * parameters.width_px * parameters.height_px


def _count_refused(survey: _Survey, rules: SourceRules, source: SourceRow) -> None:
    """A source, or one of its masks, that the rules do not let be read."""
    uris = [uri for uri in (source.uri, *(mask.uri for mask in source.masks)) if uri]
    refused = next(((uri, refusal) for uri in uris if (refusal := rules.refusal(uri))), None)
    if refused is not None:
        survey.refused += 1
        shown = f"that of row {source.row}, {redact_url(refused[0])}: {refused[1]}"
        survey.first_refused = survey.first_refused or shown


def _plan_of(intent: Intent, survey: _Survey, selection: Selection | None) -> Plan:
    carried, spared = intent.carried_schema, 0 if selection is None else selection.spared
    digest = survey.digest.copy()
    digest.update(canonical_json([survey.edits_total, intent.context.fingerprint]).encode())
    return Plan(
        plan_id=digest.hexdigest(),
        edits_total=survey.edits_total,
        edits_done=survey.edits_done - spared,
        groups_pending=survey.groups_pending,
        sources=len(survey.sources),
        unet_rows=survey.unet_rows,
        output_bytes=int(survey.output_pixels * _BYTES_PER_PIXEL[intent.job.images.format]),
        work_files=(),
        carried_schema=carried if len(carried) else None,
        label_names=intent.label_names,
        fingerprint=intent.context.fingerprint,
        parameters=intent.parameters,
        sources_refused=survey.refused,
        edits_spared=spared,
        round=selection,
        annotations=intent.annotations,
    )

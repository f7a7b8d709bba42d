"""What a run folder records before its first edit: the job and the columns; later jobs must fit.

A verdict is final, so a job must judge as the edits of its run folder were judged. Rules are
compared for each edit type that the ledger has edits of, so a job may add rules for a new type. The
judge's models and the reconstruction gate are compared as soon as any edit was judged. The other
keys of the section may change: where models compute, which further scores are computed, the retry
ladder, and whether rejected edits are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pydantic import ValidationError

from fpe_core.parameters import EVERY_STEP
from pipeline.errors import JobError, StorageError
from pipeline.job.job import Job
from pipeline.job.judge import JudgeSection
from pipeline.job.renamed_keys import in_todays_keys
from pipeline.job.section import Section
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import Outcome
from pipeline.manifest.features import class_names, features_of
from pipeline.manifest.labels import TARGET_LABELS
from pipeline.plan.plan import Plan
from pipeline.plan.resolved_job import SCHEMA_FILE
from pipeline.redact import redact_url
from pipeline.storage.folder import Folder, absolute_url
from pipeline.write.metadata import MetadataLayout

CONFIG_FILE = "config.yaml"


def metadata_layout(job: Job, plan: Plan) -> MetadataLayout:
    """The columns of a job's metadata. Raises JobError if a label has the name of one of them."""
    layout = MetadataLayout(
        plan.label_names,
        plan.carried_schema,
        job.images.keep_source,
        judged=job.judge is not None,
        gated=job.judge is not None and job.judge.reconstruction.is_on,
        limits_guidance=plan.parameters.guidance_interval != EVERY_STEP,
        annotations=() if plan.annotations is None else plan.annotations.fields,
        typed=plan.has_edit_types,
        label_types=plan.label_types,
        label_classes=plan.label_classes,
        names_editor=plan.parameters.editor is not None,
        edited=plan.makes_edits,
    )
    for name in layout.refused_labels():
        where = TARGET_LABELS if job.prompts is None else "prompts.labels"
        raise JobError(
            f"{where}.{name}: the output has a column of this name already; rename the label"
        )
    return layout


def claim_columns(folder: Folder, layout: MetadataLayout) -> MetadataLayout:
    """Records the layout's schema as that of the folder's metadata files, if it is the folder's
    first job. Returns the layout with the schema that is recorded.

    Raises JobError if an earlier job recorded other columns, or other types of values.
    """
    if folder.write_if_absent(SCHEMA_FILE, layout.schema.serialize().to_pybytes()):
        return layout
    there = pa.ipc.read_schema(pa.py_buffer(folder.read(SCHEMA_FILE)))
    continuing = layout.continuing(there)
    if continuing is None:
        raise JobError(
            f"{folder.url} holds edits with other columns, and a folder has one set of them "
            f"({_difference(there, layout.schema)}): give the job another output"
        )
    return continuing


def encode_config(job: Job, plan: Plan) -> bytes:
    """The job as YAML: edit parameters resolved, paths absolute, secrets of URLs hidden."""
    manifest = [redact_url(absolute_url(url)) for url in job.manifest_urls]
    resolved = job.with_parameters(plan.parameters).model_copy(
        update={
            "manifest": manifest if isinstance(job.manifest, list) else manifest[0],
            "output": absolute_url(job.output),
        }
    )
    text = yaml.safe_dump(
        resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )
    return str(text).encode()


def stored_job(config: bytes | str) -> dict[str, Any]:
    """Reads what `encode_config` of this or an earlier release wrote; keys are those of this one.

    {} if it is not a mapping. Raises yaml.YAMLError, ValueError and RecursionError.
    """
    values = yaml.safe_load(config)
    return in_todays_keys(values) if isinstance(values, dict) else {}


def _difference(there: pa.Schema, here: pa.Schema) -> str:
    """Text that names the columns that differ."""
    fields = [set(_described(schema)) for schema in (there, here)]
    parts = [("missing now", fields[0] - fields[1]), ("new", fields[1] - fields[0])]
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in parts if names)


def _described(schema: pa.Schema) -> Iterator[str]:
    features = features_of(schema)
    for item in schema:
        names = class_names(features.get(item.name))
        yield f"{item.name}: {item.type}{f' with classes {list(names)}' if names else ''}"


_FOR_ALL_TYPES = ("clip", "structure", "lpips", "reconstruction")
"""Keys that the verdict on an edit of any type depends on."""


def refuse_other_judge(folder: Folder, config: str, judge: JudgeSection, ledger: Ledger) -> None:
    """Checks that a judge agrees with that of the folder's last job, if that left verdicts.

    `config`: the file in the folder that has the last job. Nothing is refused if it does not exist,
    or has no judge that this release can read.

    Raises JobError if the judges differ, and StorageError if the store does not answer.
    """
    before = _judge_of(folder, config)
    if before is None or before == judge:
        return
    found = list(_differences(before, judge, _judged_types(ledger)))
    if found:
        raise JobError(
            f"{folder.url} holds edits judged by another judge ({'; '.join(found)}), and a verdict "
            "is final: give the job another output, or the earlier judge, which is in "
            f"{folder.url_of(config)}"
        )


def _judge_of(folder: Folder, config: str) -> JudgeSection | None:
    try:
        data = folder.read(config)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise  # unknown is not absent: a store that does not answer may hold another judge
    try:
        return JudgeSection.model_validate(stored_job(data)["judge"])
    except (yaml.YAMLError, ValidationError, KeyError, TypeError):
        return None


def _judged_types(ledger: Ledger) -> set[str]:
    """The types of the edits that were accepted or rejected, "" for those without one."""
    found: set[str] = set()
    for table in ledger.outcomes():
        is_judged = pc.is_in(
            table["outcome"], value_set=pa.array([Outcome.ACCEPTED.value, Outcome.REJECTED.value])
        )
        judged = table.filter(is_judged)
        found |= set(pc.unique(judged["edit_type"]).to_pylist())
    return found


def _differences(before: JudgeSection, now: JudgeSection, types: Collection[str]) -> Iterator[str]:
    """Texts that name what differs in judging edits of these types."""
    if not types:
        return
    for name in _FOR_ALL_TYPES:
        was, becomes = (getattr(section, name) for section in (before, now))
        if was != becomes:
            yield f"judge.{name} was {_text(was)}, is {_text(becomes)}"
    rules_before, rules_now = before.to_rules(), now.to_rules()
    for edit_type in sorted(types):
        if rules_before.of(edit_type) != rules_now.of(edit_type):
            of = f" of {edit_type}" if edit_type else " without a type"
            yield f"other judge.rules for edits{of}"


def _text(value: object) -> str:
    return str(value.model_dump()) if isinstance(value, Section) else str(value)

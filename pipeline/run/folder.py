"""What a run folder records before it holds any edit: the job, and the columns.

A verdict is final, so a job has to judge as the edits of its run folder were judged. Rules are
compared type by type, for the types that the ledger has edits of, so that a job may bring rules for
a new type. Models and the gate count as soon as anything was judged. What else the section says may
change: where models compute, which further scores there are, how rejected edits are tried again,
whether they are kept.
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
from pipeline.manifest.labels import TARGET_LABELS
from pipeline.plan.plan import Plan
from pipeline.redact import redact_url
from pipeline.storage.folder import Folder, absolute_url
from pipeline.write.metadata import MetadataLayout

CONFIG_FILE = "config.yaml"
SCHEMA_FILE = ".metadata-schema"
"""The schema of the run folder's metadata files: a later job with other columns is refused."""


def metadata_layout(job: Job, plan: Plan) -> MetadataLayout:
    """The columns of a job's metadata. Raises JobError where a label has the name of one."""
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
        edited=plan.makes_edits,
    )
    for name in layout.refused_labels():
        where = TARGET_LABELS if job.prompts is None else "prompts.labels"
        raise JobError(
            f"{where}.{name}: the output has a column of this name already; rename the label"
        )
    return layout


def claim_columns(folder: Folder, schema: pa.Schema) -> None:
    """Makes `schema` that of the folder's metadata files: the first job's decides.

    Raises JobError if they have another one already.
    """
    if folder.write_if_absent(SCHEMA_FILE, schema.serialize().to_pybytes()):
        return
    there = pa.ipc.read_schema(pa.py_buffer(folder.read(SCHEMA_FILE)))
    if not schema.equals(there):
        raise JobError(
            f"{folder.url} holds edits with other columns, and a folder has one set of them "
            f"({_difference(there, schema)}): give the job another output"
        )


def encode_config(job: Job, plan: Plan) -> bytes:
    """The job as it runs: edit parameters resolved, places absolute, no secrets of URLs."""
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
    """What `encode_config` wrote, by this release or an earlier one, in the keys of this one.

    {} for what is not a mapping. Raises yaml.YAMLError, ValueError and RecursionError.
    """
    values = yaml.safe_load(config)
    return in_todays_keys(values) if isinstance(values, dict) else {}


def _difference(there: pa.Schema, here: pa.Schema) -> str:
    """Which columns differ, for people."""
    fields = [{f"{item.name}: {item.type}" for item in schema} for schema in (there, here)]
    parts = [("missing now", fields[0] - fields[1]), ("new", fields[1] - fields[0])]
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in parts if names)


_FOR_ALL_TYPES = ("clip", "structure", "lpips", "reconstruction")
"""Settings that a verdict depends on, whatever the type of the edit."""


def refuse_other_judge(folder: Folder, config: str, judge: JudgeSection, ledger: Ledger) -> None:
    """Refuses a judge where the folder's last job judged otherwise, and left verdicts.

    `config`: the file in the folder that has that job. One that is not there, or has no judge that
    this release can read, is no reason to refuse.

    Raises JobError if it does, and StorageError if the store does not answer.
    """
    before = _judge_of(folder, config)
    if before is None or before == judge:
        return
    found = list(_differences(before, judge, _judged_types(ledger)))
    if found:
        raise JobError(
            f"{folder.url} holds edits judged by another judge ({'; '.join(found)}), and a verdict "
            "is final: give the job another output, or the judge of before, which is in "
            f"{folder.url_of(config)}"
        )


def _judge_of(folder: Folder, config: str) -> JudgeSection | None:
    try:
        data = folder.read(config)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise  # a store that does not answer is no leave to judge otherwise
    try:
        return JudgeSection.model_validate(stored_job(data)["judge"])
    except (yaml.YAMLError, ValidationError, KeyError, TypeError):
        return None


def _judged_types(ledger: Ledger) -> set[str]:
    """The types of the edits that were accepted or rejected, "" for those without one."""
    found: set[str] = set()
    for table in ledger.outcomes():
        judged = table.filter(pc.not_equal(table["outcome"], Outcome.FAILED.value))
        found |= set(pc.unique(judged["edit_type"]).to_pylist())
    return found


def _differences(before: JudgeSection, now: JudgeSection, types: Collection[str]) -> Iterator[str]:
    """What decides on edits of these types and is not the same, for people."""
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

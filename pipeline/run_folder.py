"""What a run folder says of itself before it holds anything: the job, and the columns."""

from __future__ import annotations

import pyarrow as pa
import yaml

from fpe_core.parameters import EVERY_STEP
from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.plan import Plan
from pipeline.redact import redact_url
from pipeline.storage import Folder, absolute_url
from pipeline.target_labels import TARGET_LABELS
from pipeline.write import MetadataLayout

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
        gated=job.judge is not None and job.judge.reproduction.is_on,
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


def claim_columns(folder: Folder, layout: MetadataLayout) -> MetadataLayout:
    """The layout that the folder's metadata files have: the first job's decides.

    Raises JobError where that is none that this job could write.
    """
    schema = layout.schema
    if folder.write_if_absent(SCHEMA_FILE, schema.serialize().to_pybytes()):
        return layout
    there = pa.ipc.read_schema(pa.py_buffer(folder.read(SCHEMA_FILE)))
    for each in (layout, *layout.of_before):
        if each.schema.equals(there):
            return each
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


def _difference(there: pa.Schema, here: pa.Schema) -> str:
    """Which columns differ, for people."""
    fields = [{f"{item.name}: {item.type}" for item in schema} for schema in (there, here)]
    parts = [("missing now", fields[0] - fields[1]), ("new", fields[1] - fields[0])]
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in parts if names)

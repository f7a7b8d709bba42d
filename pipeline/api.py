"""What `from pipeline import ...` gives: a job run or planned from Python, a run folder opened.

docs/python.md shows how they are used. Errors that a person can act on are `UserError`s
(pipeline/errors.py), with the same text as the command prints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from pipeline.job.file import load_job, with_overrides
from pipeline.job.job import Job
from pipeline.plan.plan import Plan, make_plan
from pipeline.report.opened_run import OpenedRun
from pipeline.run import driver
from pipeline.run.commits import ProgressSink
from pipeline.run.stats import RunSummary

JobSource: TypeAlias = Job | str | os.PathLike[str] | Mapping[str, Any]
"""A job, the path of a job file, or a mapping with a job file's keys."""


def run_job(
    job: JobSource, *, overrides: Sequence[str] = (), progress: ProgressSink | None = None
) -> RunSummary:
    """Runs a job, or goes on with it: makes every edit that its run folder does not have yet.

    Returns when all of them have an outcome. A Ray that this process is connected to is used and
    left running; otherwise one is started, or connected to (`resources.ray_address`), and left at
    the end. May be called from any thread. In the main thread ctrl-C and SIGTERM stop the run in
    order, and what these signals did before is restored at the end.

    Args:
        job: a Job, the path of a job file, or a mapping with its keys.
        overrides: texts such as "edit.steps=20", applied in their order.
        progress: receives the outcomes as they arrive; None: no progress is shown.

    Raises:
        UserError: JobError and ManifestError before any work, with one line per problem; LeaseError
            while another run has the run folder; StorageError, LedgerError, ResourceError; and
            TooManyFailuresError and Interrupted after what had arrived is committed. The same call
            then goes on from there.
    """
    return driver.run_job(_job_of(job, overrides), progress=progress or _NoProgress())


def plan_job(job: JobSource, *, overrides: Sequence[str] = ()) -> Plan:
    """Checks a job and its whole manifest, and counts what a run would do. Writes nothing.

    Of the plan's fields, `edits_total`, `edits_done` and `edits_pending` count edits, `sources` all
    sources and `groups_pending` those with a pending edit, `unet_rows` what the pending edits cost
    and `output_bytes` (an estimate) what they take. Takes what `run_job` takes, and raises
    JobError, ManifestError, LedgerError and StorageError.
    """
    return make_plan(_job_of(job, overrides), write=False)


def open_run(url: str, storage_options: Mapping[str, Any] | None = None) -> OpenedRun:
    """The run folder at a URL or local path, to read its edits, outcomes and statistics.

    `storage_options`: fsspec's, as in the job file. Raises StorageError where there is no run, or
    the store does not answer.
    """
    return OpenedRun.open(url, storage_options)


def _job_of(job: JobSource, overrides: Sequence[str]) -> Job:
    if isinstance(job, Job):
        return with_overrides(job, overrides)
    return load_job(job, overrides)


class _NoProgress:
    """A progress sink that shows nothing."""

    def start(self, total: int, done: int) -> None:
        pass

    def advance(self, outcomes_table: pa.Table) -> None:
        pass

    def finish(self) -> None:
        pass

"""The Python interface: run a job, plan a job, open a run folder.

docs/python.md shows how to use it. Errors that a person can act on are `UserError`s
(pipeline/errors.py), with the same text that the command prints.
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
    """Runs a job, or resumes it: makes every edit that its run folder does not have yet.

    Returns when all of them have an outcome. If this process is connected to a Ray already, that
    one is used and left running. Otherwise the Ray at `resources.ray_address` is connected to, or a
    local one is started, until the run ends. May be called from any thread. In the main thread
    ctrl-C and SIGTERM stop the run in an orderly way; the signal handlers of before are restored at
    the end.

    Args:
        job: a Job, the path of a job file, or a mapping with its keys.
        overrides: texts such as "edit.steps=20", applied in this order.
        progress: receives the outcomes as they arrive; None: no progress is shown.

    Raises:
        UserError: JobError and ManifestError before any work, with one line per problem; LeaseError
            while another run uses the run folder; StorageError, LedgerError and ResourceError;
            TooManyFailuresError and Interrupted, which are raised once all outcomes that arrived
            are committed. The same call then resumes from there.
    """
    return driver.run_job(_job_of(job, overrides), progress=progress or _NoProgress())


def plan_job(job: JobSource, *, overrides: Sequence[str] = ()) -> Plan:
    """Checks a job and its whole manifest, and counts what a run would do. Writes nothing.

    `job` and `overrides` are those of `run_job`. In the plan that is returned, `edits_total`,
    `edits_done` and `edits_pending` count edits, `sources` counts all sources and `groups_pending`
    those with a pending edit. `unet_rows` is what the pending edits cost, and `output_bytes` an
    estimate of their size on disk. Raises JobError, ManifestError, LedgerError and StorageError.
    """
    return make_plan(_job_of(job, overrides), write=False)


def open_run(url: str, storage_options: Mapping[str, Any] | None = None) -> OpenedRun:
    """The run folder at a URL or local path, to read its edits, outcomes and statistics.

    `storage_options`: fsspec's, as in the job file. Raises StorageError if there is no run, or if
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

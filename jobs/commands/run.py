"""`fpe run`, `retry` and `submit`: commands that make edits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from jobs.commands.arguments import JobFile, Overrides, RunOrJob
from jobs.terminal import console
from jobs.terminal.exits import guarded
from jobs.terminal.logs import log_as_the_job_says
from pipeline.errors import LeaseError

if TYPE_CHECKING:
    from pipeline.job.job import Job
    from pipeline.ledger.outcome import FailureCode
    from pipeline.run.stats import RunSummary


Made = TypeVar("Made")
_log = logging.getLogger(__name__)


def unless_in_use(run: Callable[[], Made], *, wait_s: float) -> Made | None:
    """What `run` returns, or None if another run is alive and uses the folder.

    A scheduler that lost a machine may start the next run before the lease of the dead one has
    expired. So if the folder is in use, this waits for `wait_s`, in which such a lease expires, and
    tries once more. All other errors of `run` are raised.
    """
    try:
        return run()
    except LeaseError as error:
        _log.warning("%s", error)
    _log.warning("trying again in %.0f s; by then the lease of a run that died has expired", wait_s)
    time.sleep(wait_s)
    try:
        return run()
    except LeaseError as error:
        _log.warning("%s", error)
        return None


@guarded
def run(
    job_file: JobFile,
    overrides: Overrides = None,
    *,
    skip_if_in_use: Annotated[
        bool,
        typer.Option(
            "--skip-if-in-use",
            help="For schedulers: exit with 0 instead of 75 if another run is using the run "
            "folder. Waits until the lease of a run that died has expired.",
        ),
    ] = False,
) -> None:
    """Run a job, or resume it: edits that are done are skipped."""
    from pipeline.job.file import load_job

    job = load_job(job_file, overrides or [])
    if not skip_if_in_use:
        print_outcome(run_with_progress(job))
        return
    summary = unless_in_use(
        lambda: run_with_progress(job), wait_s=job.lease.expiry_s + job.lease.heartbeat_s
    )
    if summary is None:
        console.out().print(f"Another run is using {job.output}: nothing was done.", markup=False)
        return
    print_outcome(summary)


@guarded
def retry(
    run_folder: RunOrJob,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Only failures with this code; may be given repeatedly."),
    ] = None,
) -> None:
    """Retry the failed edits of a run, and nothing else. The ledger keeps earlier outcomes."""
    from jobs.terminal.progress import choose_progress
    from pipeline.job.file import is_job_file, load_job, load_job_of_run
    from pipeline.run.driver import retry_failed

    codes = _failure_codes(only or [])
    load = load_job if is_job_file(run_folder) else load_job_of_run
    job = load(run_folder, overrides or [])
    with choose_progress(console.err(), in_lines=log_as_the_job_says(job)) as progress:
        summary = retry_failed(job, codes, progress=progress)
    if not summary.edits_made and not summary.edits_skipped_by_quota:
        which = f" as {' or '.join(codes)}" if codes else ""
        console.out().print(f"No edit of this job has failed{which}: nothing to retry.")
    if summary.edits_skipped_by_quota:
        console.out().print(
            f"{summary.edits_skipped_by_quota} failed edits are in cells whose quota is filled: "
            "not retried."
        )
    print_summary(summary)


@guarded
def submit(
    job_file: JobFile,
    overrides: Overrides = None,
    *,
    address: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="RAY_API_SERVER_ADDRESS",
            help="The cluster's job server, such as http://127.0.0.1:8265.",
        ),
    ],
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once, without following the log.")
    ] = False,
    shared_disk: Annotated[
        bool,
        typer.Option("--shared-disk", help="The local paths of the job exist on every node."),
    ] = False,
    with_code: Annotated[
        bool,
        typer.Option(
            "--with-code",
            help="Upload this program, and use it instead of the one installed on nodes.",
        ),
    ] = False,
) -> None:
    """Run a job on a Ray cluster through its job server; follow its log to its exit code."""
    from jobs.commands.job_server import follow
    from jobs.commands.job_server import submit as submit_job
    from pipeline.job.file import load_job

    job = load_job(job_file, overrides or [])
    client, submission = submit_job(job, address, shared_disk=shared_disk, with_code=with_code)
    console.out().print(f"Submitted {submission.submission_id}", markup=False)
    if detach:
        console.out().print(
            f"{submission.how_to()}\n  state    fpe status {job_file}", markup=False
        )
        return
    code = follow(
        client, submission, lambda lines: console.out().print(lines, markup=False, end="")
    )
    if code:
        raise typer.Exit(code)


def run_with_progress(job: Job) -> RunSummary:
    from jobs.terminal.progress import choose_progress
    from pipeline.run.driver import run_job

    with choose_progress(console.err(), in_lines=log_as_the_job_says(job)) as progress:
        return run_job(job, progress=progress)


def _failure_codes(names: list[str]) -> list[FailureCode]:
    from pipeline.errors import JobError
    from pipeline.ledger.outcome import FailureCode

    known = [code.value for code in FailureCode]
    for name in names:
        if name not in known:
            raise JobError(f"--only {name}: not a failure code; known are {', '.join(known)}")
    return [FailureCode(name) for name in names]


def print_outcome(summary: RunSummary) -> None:
    if not summary.edits_made and summary.edits_skipped_by_quota:
        done = f"{summary.already_done} of {summary.edits_planned} edits"
        console.out().print(
            f"{done} are done, and the quotas ask for no more; nothing was computed."
        )
    elif not summary.edits_made:
        console.out().print(
            f"All {summary.edits_planned} edits are done already; nothing was computed."
        )
    print_summary(summary)


def print_summary(summary: RunSummary) -> None:
    from jobs.terminal.tables import quotas_table, stages_table, summary_table

    console.out().print(summary_table(summary))
    if summary.quotas:
        console.out().print(quotas_table(summary.quotas))
    if summary.stages:
        console.out().print(stages_table(summary))
    for code, example in summary.failure_examples.items():
        console.out().print(f"{code}, for example: {example}", markup=False)

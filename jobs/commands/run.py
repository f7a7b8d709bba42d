"""A run that a scheduler started: where another has the run folder, there is nothing to retry."""

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
    """What `run` returns; None where another run has the folder and is alive.

    Whether it is alive shows after `wait_s`, in which a dead one loses its lease: a scheduler that
    lost a machine starts the next attempt sooner than that. Raises what `run` raises else.
    """
    try:
        return run()
    except LeaseError as error:
        _log.warning("%s", error)
    _log.warning("looking again in %.0f s, when a run that died has lost the folder", wait_s)
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
            help="For schedulers: exit code 0, not 75, where another run has the run folder; a "
            "dead one is waited out.",
        ),
    ] = False,
) -> None:
    """Run a job, or go on with it: what is done already is left out."""
    from pipeline.job.file import load_job

    job = load_job(job_file, overrides or [])
    if not skip_if_in_use:
        print_outcome(run_with_progress(job))
        return
    summary = unless_in_use(
        lambda: run_with_progress(job), wait_s=job.lease.expiry_s + job.lease.heartbeat_s
    )
    if summary is None:
        console.out().print(f"Another run has {job.output}: left to it.", markup=False)
        return
    print_outcome(summary)


@guarded
def retry(
    run_folder: RunOrJob,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Failures of this kind only; may be given repeatedly."),
    ] = None,
) -> None:
    """Try the failed edits of a run again, and nothing else. Their history is kept."""
    from jobs.terminal.progress import choose_progress
    from pipeline.job.file import is_job_file, load_job, load_job_of_run
    from pipeline.run.driver import retry_failed

    codes = _failure_codes(only or [])
    load = load_job if is_job_file(run_folder) else load_job_of_run
    job = load(run_folder, overrides or [])
    with choose_progress(console.err(), in_lines=log_as_the_job_says(job)) as progress:
        summary = retry_failed(job, codes, progress=progress)
    if not summary.edits_made and not summary.spared:
        which = f" as {' or '.join(codes)}" if codes else ""
        console.out().print(f"No edit of this job has failed{which}: nothing to try again.")
    if summary.spared:
        console.out().print(
            f"{summary.spared} failed edits are of full cells (quotas): left alone."
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
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    shared_disk: Annotated[
        bool,
        typer.Option("--shared-disk", help="Local places of the job are the same on every node."),
    ] = False,
    with_code: Annotated[
        bool,
        typer.Option("--with-code", help="Send this program along, instead of what nodes have."),
    ] = False,
) -> None:
    """Run a job on a Ray cluster through its job server, and follow its log to its exit code."""
    from jobs.commands.job_server import follow
    from jobs.commands.job_server import submit as hand_over
    from pipeline.job.file import load_job

    job = load_job(job_file, overrides or [])
    client, submission = hand_over(job, address, shared_disk=shared_disk, with_code=with_code)
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
            raise JobError(f"--only {name}: no failure code; there are {', '.join(known)}")
    return [FailureCode(name) for name in names]


def print_outcome(summary: RunSummary) -> None:
    if not summary.edits_made and summary.spared:
        done = f"{summary.already_done} of {summary.edits_planned} edits"
        console.out().print(
            f"{done} are done, and the quotas call for no more; nothing was computed."
        )
    elif not summary.edits_made:
        console.out().print(
            f"All {summary.edits_planned} edits are done already; nothing was computed."
        )
    print_summary(summary)


def print_summary(summary: RunSummary) -> None:
    from jobs.terminal.tables import quotas_table, stations_table, summary_table

    console.out().print(summary_table(summary))
    if summary.quotas:
        console.out().print(quotas_table(summary.quotas))
    if summary.stations:
        console.out().print(stations_table(summary))
    for code, example in summary.failure_examples.items():
        console.out().print(f"{code}, for one: {example}", markup=False)

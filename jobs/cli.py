"""The `fpe` command.

Modules that load torch or Ray are imported inside the commands that need them: `fpe --help` and a
typo in a command answer at once.
"""

from __future__ import annotations

import logging
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.logging import RichHandler

from jobs import bench, calibrate_command, plan_command
from jobs import console
from jobs.exits import STOPPED, guarded
from jobs.plan_command import JobFile, Overrides
from pipeline.logs import (
    FLOORS,
    TRIED_AGAIN,
    LogSettings,
    say_what_is_tried_again,
    stderr_handler,
)

if TYPE_CHECKING:
    from pipeline.job import Job
    from pipeline.outcome import FailureCode
    from pipeline.stats import RunSummary

app = typer.Typer(
    name="fpe",
    help="Edit whole image datasets with text: Free-Prompt-Editing on Ray Data.",
    epilog="Exit codes: 0 done; 1 stopped before the end, or not in order; 2 wrong command line, "
    "job file, manifest or checkpoint; 130 and 143 interrupted (the same command goes on); "
    "75 another run has the run folder; 70 a defect of this program.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Show job files and their defaults.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(bench.app, name="bench")
app.command("calibrate")(calibrate_command.calibrate)
app.command("plan")(plan_command.plan)


RunOrJob = Annotated[
    str, typer.Argument(metavar="RUN|JOB.yaml", help="Run folder (path or URL), or its job file.")
]


def main() -> None:
    """The entry point. `--debug` may stand anywhere."""
    app(args=[argument for argument in sys.argv[1:] if argument != "--debug"], prog_name="fpe")


@app.callback()
def _options(
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors. May stand anywhere.")
    ] = False,
) -> None:
    _log_to_stderr()


@app.command()
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
    from jobs.config import load_job
    from jobs.in_use import unless_in_use

    job = load_job(job_file, overrides or [])
    if not skip_if_in_use:
        _tell(_run(job))
        return
    summary = unless_in_use(lambda: _run(job), wait_s=job.lease.expiry_s + job.lease.heartbeat_s)
    if summary is None:
        console.out().print(f"Another run has {job.output}: left to it.", markup=False)
        return
    _tell(summary)


@app.command()
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
    from jobs.config import is_job_file, load_job, load_job_of_run
    from jobs.progress import choose_progress
    from pipeline.run import retry_failed

    codes = _failure_codes(only or [])
    load = load_job if is_job_file(run_folder) else load_job_of_run
    job = load(run_folder, overrides or [])
    with choose_progress(console.err(), in_lines=_log_as(job)) as progress:
        summary = retry_failed(job, codes, progress=progress)
    if not summary.edits_made and not summary.spared:
        which = f" as {' or '.join(codes)}" if codes else ""
        console.out().print(f"No edit of this job has failed{which}: nothing to try again.")
    if summary.spared:
        console.out().print(f"{summary.spared} failed edits are of full cells (quotas): left alone.")
    _print(summary)


@app.command()
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
    from jobs.config import load_job
    from jobs.submit import follow
    from jobs.submit import submit as hand_over

    job = load_job(job_file, overrides or [])
    client, submission = hand_over(job, address, shared_disk=shared_disk, with_code=with_code)
    console.out().print(f"Submitted {submission.submission_id}", markup=False)
    if detach:
        console.out().print(f"{submission.how_to()}\n  state    fpe status {job_file}", markup=False)
        return
    code = follow(client, submission, lambda lines: console.out().print(lines, markup=False, end=""))
    if code:
        raise typer.Exit(code)


@app.command()
@guarded
def status(run_folder: RunOrJob) -> None:
    """Say how far a run is."""
    from jobs.tables import status_table
    from pipeline.status import run_status

    output, options = _place(run_folder)
    console.out().print(status_table(run_status(output, options)))


@app.command()
@guarded
def verify(
    run_folder: RunOrJob,
    overrides: Overrides = None,
    recompute: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Make N accepted edits again, and compare."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where --recompute computes, such as cuda:0; else as the job says."),
    ] = None,
) -> None:
    """Prove a run: every planned edit accounted for, every picture there and readable."""
    from jobs.config import is_job_file, load_job, load_job_of_run
    from jobs.tables import verification_table
    from pipeline.verify import verify_run

    load = load_job if is_job_file(run_folder) else load_job_of_run
    job = load(run_folder, overrides or [])
    with console.err().status("Reading the ledger, the manifest and every picture"):
        found = verify_run(job)
    console.out().print(verification_table(found, job.output))
    for problem in found.problems:
        console.out().print(problem, markup=False)
    hidden = found.problems_total - len(found.problems)
    if hidden:
        console.out().print(f"... and {hidden} more")
    # A run that is not in order needs no sample, and its error would hide what was found.
    is_same = not found.ok or recompute is None or _recompute(job, recompute, device)
    if not found.ok or not is_same:
        console.out().print("The run is not in order.")
        raise typer.Exit(STOPPED)
    console.out().print("The run is in order" + (", and not finished." if found.pending else "."))


@app.command()
@guarded
def sheet(
    run_folder: RunOrJob,
    sources: Annotated[int, typer.Option(min=1, help="How many sources are shown.")] = 9,
    edits: Annotated[int, typer.Option(min=1, help="How many edits of each.")] = 5,
) -> None:
    """Draw a run's contact sheet: sources and their edits, with captions."""
    from pipeline.contact_sheet import SheetLayout, write_contact_sheet
    from pipeline.errors import StorageError
    from pipeline.storage import Folder

    output, options = _place(run_folder)
    folder = Folder.open(output, options)
    layout = SheetLayout(sources=sources, edits_per_source=edits)
    path = write_contact_sheet(folder, title=output, layout=layout)
    if path is None:
        raise StorageError(f"{output}: no edits to show; is this the run folder of a job?")
    console.out().print(f"{output.rstrip('/')}/{path}")


@app.command()
@guarded
def report(
    run_folder: RunOrJob,
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="A second run, to compare with.")
    ] = None,
    *,
    out: Annotated[
        str | None, typer.Option(help="File or URL of the page; else it goes into the run folder.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of one worker: the report then counts money.")
    ] = None,
) -> None:
    """Write a page about a run, or about two side by side: outcomes, scores, pictures, cost."""
    from jobs.report_file import write_comparison, write_report
    from pipeline.storage import Folder

    folder = Folder.open(*_place(run_folder))
    with console.err().status("Reading the ledger and pictures"):
        if other is None:
            written = write_report(folder, out=out, price_per_hour=price_per_hour)
        else:
            written = write_comparison(folder, Folder.open(*_place(other)), out=out)
    console.out().print(written.url)


@config_app.command("show")
@guarded
def config_show(
    job_file: Annotated[
        str | None, typer.Argument(metavar="JOB.yaml", help="Show this job instead of defaults.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print every key of a job file, with its value or default and what it means, as YAML."""
    from jobs.config import load_job
    from jobs.show import job_as_yaml

    job = None if job_file is None else load_job(job_file, overrides or [])
    console.out().print(job_as_yaml(job), markup=False, end="")


@app.command()
@guarded
def demo(
    folder: Annotated[
        pathlib.Path, typer.Option(help="Where demo-scenes/ and demo/ are put.")
    ] = pathlib.Path("out"),
    scenes: Annotated[int, typer.Option(min=1, max=1000, help="How many to render.")] = 24,
) -> None:
    """Render still lifes, edit them with the built-in model, draw a contact sheet and a report."""
    from jobs.config import BUILTIN_FOLDER, load_job
    from jobs.demo import write_scenes
    from jobs.report import REPORT_NAME
    from jobs.report_file import write_report
    from pipeline.contact_sheet import SHEET_NAME, write_contact_sheet
    from pipeline.storage import Folder

    rendered = write_scenes(folder / "demo-scenes", scenes)
    console.out().print(
        f"{rendered.scenes} scenes in {folder / 'demo-scenes'}, {rendered.edits} edits asked for"
    )
    job = load_job(
        BUILTIN_FOLDER / "demo.yaml",
        [f"manifest={rendered.manifest}", f"output={folder / 'demo'}"],
    )
    summary = _run(job)
    run_folder = Folder.open(job.output)
    if summary.accepted or not run_folder.exists(SHEET_NAME):
        write_contact_sheet(run_folder, title=f"Free-Prompt-Editing with {job.model.checkpoint}")
    _tell(summary)
    if summary.edits_made or not run_folder.exists(REPORT_NAME):
        write_report(run_folder)
    console.out().print(f"Report: {folder / 'demo' / REPORT_NAME}")
    console.out().print(f"Contact sheet: {folder / 'demo' / SHEET_NAME}")


def _log_to_stderr(logs: LogSettings | None = None) -> None:
    """Our own log lines; on a terminal, where a bar tells the rest, warnings only."""
    logs = logs or LogSettings()
    if logs.format == "json":
        level = logging.INFO
        logging.basicConfig(handlers=[stderr_handler(logs)], force=True)
    elif console.err().is_terminal:
        handler, level = RichHandler(console=console.err(), show_path=False), logging.WARNING
        logging.basicConfig(format="%(message)s", datefmt="%X", handlers=[handler])
    else:
        level = logging.INFO
        logging.basicConfig(handlers=[stderr_handler(logs)])
    for floor in FLOORS:
        logging.getLogger(floor).setLevel(level)
    logging.getLogger(TRIED_AGAIN).addFilter(say_what_is_tried_again)


def _log_as(job: Job) -> bool:
    """Logs as the job wants it; whether progress is told in lines, even on a terminal."""
    if job.logs.format == "json":
        _log_to_stderr(job.logs.to_settings())
    elif job.logs.shows_ray_bars:
        logging.basicConfig(handlers=[stderr_handler(LogSettings())], force=True)
        logging.getLogger("jobs.progress").setLevel(logging.INFO)
    if job.logs.level == "debug":
        for floor in FLOORS:
            logging.getLogger(floor).setLevel(logging.DEBUG)
    return job.logs.format == "json" or job.logs.shows_ray_bars


def _run(job: Job) -> RunSummary:
    from jobs.progress import choose_progress
    from pipeline.run import run_job

    with choose_progress(console.err(), in_lines=_log_as(job)) as progress:
        return run_job(job, progress=progress)


def _recompute(job: Job, count: int, device: str | None) -> bool:
    """Makes a sample again and prints what differs; whether nothing does."""
    from jobs.tables import recomputation_table
    from pipeline.recompute import Verdict, recompute_sample

    with console.err().status("Loading the model") as status:
        found = recompute_sample(
            job,
            count,
            device=device,
            progress=lambda done, total: status.update(f"Made {done} of {total} edits again"),
        )
    console.out().print(recomputation_table(found))
    for comparison in (*found.of(Verdict.DIFFERENT), *found.of(Verdict.NOT_MADE)):
        console.out().print(str(comparison), markup=False)
    if not found.compared:
        console.out().print("Nothing could be compared.")
    return found.ok


def _failure_codes(names: list[str]) -> list[FailureCode]:
    from pipeline.errors import JobError
    from pipeline.outcome import FailureCode

    known = [code.value for code in FailureCode]
    for name in names:
        if name not in known:
            raise JobError(f"--only {name}: no failure code; there are {', '.join(known)}")
    return [FailureCode(name) for name in names]


def _tell(summary: RunSummary) -> None:
    if not summary.edits_made and summary.spared:
        done = f"{summary.already_done} of {summary.edits_planned} edits"
        console.out().print(f"{done} are done, and the quotas call for no more; nothing was computed.")
    elif not summary.edits_made:
        console.out().print(f"All {summary.edits_planned} edits are done already; nothing was computed.")
    _print(summary)


def _print(summary: RunSummary) -> None:
    from jobs.tables import quotas_table, stations_table, summary_table

    console.out().print(summary_table(summary))
    if summary.quotas:
        console.out().print(quotas_table(summary.quotas))
    if summary.stations:
        console.out().print(stations_table(summary))
    for code, example in summary.failure_examples.items():
        console.out().print(f"{code}, for one: {example}", markup=False)


def _place(run_or_job: str) -> tuple[str, dict[str, Any]]:
    """The run folder and its storage options."""
    from jobs.config import is_job_file, load_job

    if not is_job_file(run_or_job):
        return run_or_job, {}
    job = load_job(run_or_job)
    return job.output, job.storage_options

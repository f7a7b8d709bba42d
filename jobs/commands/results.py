"""`fpe status`, `verify`, `sheet` and `report`: commands that read a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.commands.arguments import Overrides, RunOrJob
from jobs.terminal import console
from jobs.terminal.exits import STOPPED, guarded

if TYPE_CHECKING:
    from pipeline.job.job import Job


@guarded
def status(run_folder: RunOrJob) -> None:
    """Show the progress of a run."""
    from jobs.terminal.tables import status_table
    from pipeline.report.status import run_status

    output, options = _place(run_folder)
    console.out().print(status_table(run_status(output, options)))


@guarded
def verify(
    run_folder: RunOrJob,
    overrides: Overrides = None,
    recompute: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Recompute N accepted edits and compare."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device of --recompute, such as cuda:0; default: the job's."),
    ] = None,
) -> None:
    """Check a run: every planned edit has an outcome, every image is there and readable."""
    from jobs.terminal.tables import verification_table
    from pipeline.job.file import is_job_file, load_job, load_job_of_run
    from pipeline.verify.verify import verify_run

    load = load_job if is_job_file(run_folder) else load_job_of_run
    job = load(run_folder, overrides or [])
    with console.err().status("Reading the ledger, the manifest and every image"):
        found = verify_run(job)
    console.out().print(verification_table(found, job.output))
    for problem in found.problems:
        console.out().print(problem, markup=False)
    hidden = found.problems_total - len(found.problems)
    if hidden:
        console.out().print(f"... and {hidden} more")
    # If problems were found, nothing is recomputed: an error there would hide them.
    is_same = not found.ok or recompute is None or _recompute(job, recompute, device)
    if not found.ok or not is_same:
        console.out().print("The run is not in order.")
        raise typer.Exit(STOPPED)
    console.out().print("The run is in order" + (", but not finished." if found.pending else "."))


@guarded
def sheet(
    run_folder: RunOrJob,
    sources: Annotated[int, typer.Option(min=1, help="How many sources are shown.")] = 9,
    edits: Annotated[int, typer.Option(min=1, help="How many edits of each.")] = 5,
) -> None:
    """Draw a run's contact sheet: sources and their edits, with captions."""
    from pipeline.errors import StorageError
    from pipeline.report.contact_sheet import SheetLayout, write_contact_sheet
    from pipeline.storage.folder import Folder

    output, options = _place(run_folder)
    folder = Folder.open(output, options)
    layout = SheetLayout(sources=sources, edits_per_source=edits)
    path = write_contact_sheet(folder, title=output, layout=layout)
    if path is None:
        raise StorageError(f"{output}: no edits to show; is this the run folder of a job?")
    console.out().print(f"{output.rstrip('/')}/{path}")


@guarded
def report(
    run_folder: RunOrJob,
    others: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OTHER]...", help="Further runs, to compare with."),
    ] = None,
    *,
    out: Annotated[
        str | None, typer.Option(help="File or URL of the page; default: in the run folder.")
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(min=0, help="Price of one worker; the report then shows the cost."),
    ] = None,
) -> None:
    """Write a page about a run, or about several side by side: outcomes, scores, pictures, cost."""
    from jobs.report.page import write_comparison, write_report, write_side_by_side
    from pipeline.storage.folder import Folder

    folder, *more = (Folder.open(*_place(each)) for each in (run_folder, *(others or ())))
    with console.err().status("Reading the ledger and the images"):
        if not more:
            written = write_report(folder, out=out, price_per_hour=price_per_hour)
        elif len(more) == 1:
            written = write_comparison(folder, more[0], out=out)
        else:
            written = write_side_by_side([folder, *more], out=out)
    console.out().print(written.url)


def _recompute(job: Job, count: int, device: str | None) -> bool:
    """Recomputes a sample and prints the edits that differ. Returns whether none does."""
    from jobs.terminal.tables import recomputation_table
    from pipeline.verify.recompute import ComparisonVerdict, recompute_sample

    with console.err().status("Loading the model") as status:
        found = recompute_sample(
            job,
            count,
            device=device,
            progress=lambda done, total: status.update(f"Recomputed {done} of {total} edits"),
        )
    console.out().print(recomputation_table(found))
    for comparison in (
        *found.of(ComparisonVerdict.DIFFERENT),
        *found.of(ComparisonVerdict.NOT_MADE),
    ):
        console.out().print(str(comparison), markup=False)
    if not found.compared:
        console.out().print("Nothing could be compared.")
    return found.ok


def _place(run_or_job: str) -> tuple[str, dict[str, Any]]:
    """The run folder and its storage options."""
    from pipeline.job.file import is_job_file, load_job

    if not is_job_file(run_or_job):
        return run_or_job, {}
    job = load_job(run_or_job)
    return job.output, job.storage_options

"""`fpe demo`: scenes, a job, its contact sheet and report."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from jobs.commands.run import print_outcome, run_with_progress
from jobs.terminal import console
from jobs.terminal.exits import guarded


@guarded
def demo(
    folder: Annotated[
        pathlib.Path, typer.Option(help="Where demo-scenes/ and demo/ are put.")
    ] = pathlib.Path("out"),
    scenes: Annotated[int, typer.Option(min=1, max=1000, help="How many to render.")] = 24,
) -> None:
    """Render still lifes, edit them with the built-in model, draw a contact sheet and a report."""
    from jobs.demo_scenes import write_scenes
    from jobs.job_file.ready_made import BUILTIN_FOLDER
    from jobs.report.page import REPORT_NAME, write_report
    from pipeline.job.file import load_job
    from pipeline.report.contact_sheet import SHEET_NAME, write_contact_sheet
    from pipeline.storage.folder import Folder

    rendered = write_scenes(folder / "demo-scenes", scenes)
    console.out().print(
        f"{rendered.scenes} scenes in {folder / 'demo-scenes'}, {rendered.edits} edits requested"
    )
    job = load_job(
        BUILTIN_FOLDER / "demo.yaml",
        [f"manifest={rendered.manifest}", f"output={folder / 'demo'}"],
    )
    summary = run_with_progress(job)
    run_folder = Folder.open(job.output)
    if summary.accepted or not run_folder.exists(SHEET_NAME):
        write_contact_sheet(run_folder, title=f"Free-Prompt-Editing with {job.model.checkpoint}")
    print_outcome(summary)
    if summary.edits_made or not run_folder.exists(REPORT_NAME):
        write_report(run_folder)
    console.out().print(f"Report: {folder / 'demo' / REPORT_NAME}")
    console.out().print(f"Contact sheet: {folder / 'demo' / SHEET_NAME}")

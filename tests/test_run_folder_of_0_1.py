"""A run folder that version 0.1 left in the middle of its work is read, retried and finished.

tests/run_folder_of_0_1/README.md says what it holds.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.report.page import write_report
from pipeline import load_job, open_run, run_job
from pipeline.job.file import load_job_of_run
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import Outcome
from pipeline.report.contact_sheet import write_contact_sheet
from pipeline.report.status import run_status
from pipeline.run.driver import retry_failed
from pipeline.storage.folder import Folder
from pipeline.verify.verify import verify_run

KEPT = Path(__file__).parent / "run_folder_of_0_1"
SUMMARIES = ("README.md", "config.yaml", "stats.json")
"""Files of a run folder that every run writes anew."""


class Silent:
    """A progress sink that shows nothing."""

    def start(self, total: int, done: int) -> None:
        pass

    def advance(self, outcomes_table: pa.Table) -> None:
        pass

    def finish(self) -> None:
        pass


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The job of a copy of the folder, in the working directory."""
    shutil.copytree(KEPT, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return load_job("job.yaml")


def outcomes_by_edit() -> dict[bytes, list[str]]:
    """All outcomes of the ledger, the latest last."""
    found: dict[bytes, list[str]] = {}
    for table in Ledger(Folder.open("run")).outcomes():
        for row in table.to_pylist():
            found.setdefault(row["edit_id"], []).append(row["outcome"])
    return found


def files_of_run() -> dict[str, bytes]:
    """What no later run may change, by its path: all but summaries and leases."""
    return {
        path.as_posix(): path.read_bytes()
        for path in Path("run").rglob("*")
        if path.is_file() and path.name not in SUMMARIES and ".lease" not in path.parts
    }


def test_it_is_read(job: Job) -> None:
    status = run_status("run")
    assert (status.done, status.pending, status.parts) == (5, 3, 2)
    assert dict(status.counts.failed_by_code) == {"source_missing": 1}
    assert not status.is_running

    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.planned, found.pending, found.not_planned) == (8, 3, 0)
    assert (found.accepted, found.rejected, found.failed) == (2, 2, 1)
    assert found.images_checked == 6

    as_it_ran = load_job_of_run("run")
    assert (as_it_ran.judge, as_it_ran.prompts) == (job.judge, job.prompts)
    assert as_it_ran.edit.steps == 4

    run = open_run("run")
    assert (run.edits().num_rows, run.rejected().num_rows) == (2, 2)
    assert set(run.rejected()["tries"].to_pylist()) == {2}
    assert run.statistics["total"]["edits"] == 5

    folder = Folder.open("run")
    sheet = write_contact_sheet(folder, title="run")
    assert sheet is not None
    assert folder.size(sheet) > 1000
    page = Path(write_report(folder).url).read_text(encoding="utf-8")
    assert "source_missing" in page
    assert "off_target" in page


@pytest.mark.usefixtures("ray_cluster")
def test_its_failed_edit_is_retried_and_its_pending_ones_are_made(job: Job) -> None:
    before, files = outcomes_by_edit(), files_of_run()
    assert Counter(outcomes[-1] for outcomes in before.values()) == {
        Outcome.ACCEPTED: 2,
        Outcome.REJECTED: 2,
        Outcome.FAILED: 1,
    }
    shutil.copy("late/scene-1.webp", "images/scene-1.webp")

    as_it_ran = load_job_of_run("run", ["manifest=manifest.parquet"])
    summary = retry_failed(as_it_ran, progress=Silent())
    assert (summary.edits_made, summary.failed) == (1, 0)
    retried = outcomes_by_edit()
    assert retried.keys() == before.keys()
    assert {edit for edit in before if len(retried[edit]) > 1} == {
        edit for edit, outcomes in before.items() if outcomes == [Outcome.FAILED]
    }

    summary = run_job("job.yaml")
    assert (summary.edits_planned, summary.already_done) == (8, 5)
    assert (summary.edits_made, summary.failed) == (3, 0)
    after = outcomes_by_edit()
    assert len(after) == 8
    assert {edit: after[edit] for edit in retried} == retried, "nothing committed is made again"
    left = files_of_run()
    assert {path: left[path] for path in files} == files, "no file that was there has changed"
    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.pending, found.failed, found.accepted + found.rejected) == (0, 0, 8)

"""The rate of a run and the time it has left, by the store's clock."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.terminal.tables import status_table
from pipeline.job.job import Job
from pipeline.ledger.lease import hold_lease
from pipeline.ledger.ledger import Ledger, fence
from pipeline.plan.plan import make_plan
from pipeline.report.status import (
    RECENT_FILES,
    Commit,
    RunStatus,
    edits_per_second,
    recent_commits,
    run_status,
)
from tests.builders.finished_run import FinishedRun

HOUR_S = 3600.0


@pytest.mark.parametrize(
    ("commits", "expected"),
    [
        ([], None),
        ([Commit(40, 20.0)], 4.0),  # since the run began, at 10
        ([Commit(40, 20.0), Commit(10, 25.0), Commit(10, 30.0)], 2.0),  # the first came with start
        ([Commit(40, 9.0)], None),  # of a run before
        ([Commit(40, 9.0), Commit(10, 20.0), Commit(5, 22.5)], 2.0),
        ([Commit(40, 10.0), Commit(10, 10.0)], None),  # a store that knows whole seconds only
    ],
)
def test_the_pace_is_between_the_commits_of_one_run(
    commits: list[Commit], expected: float | None
) -> None:
    assert edits_per_second(commits, since_s=10.0) == expected


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_checkpoint: Path,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> FinishedRun:
    """An empty run of a job with six edits."""
    columns = {"image": ["a.png"], "target_prompt": [[f"prompt {n}" for n in range(6)]]}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    job = Job.model_validate(
        {
            "manifest": str(tmp_path / "m.parquet"),
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint)},
        }
    )
    return FinishedRun(job, png(picture()))


def row_of(status: RunStatus, label: str) -> str | None:
    """What the table of `fpe status` says beside a label."""
    names, values = (column.cells for column in status_table(status).columns)
    rows = dict(zip(map(str, names), map(str, values), strict=True))
    return rows.get(label)


def test_a_run_at_work_says_how_long_it_has_to_go(run: FinishedRun) -> None:
    make_plan(run.job)
    keys = run.keys()
    with hold_lease(run.folder, expiry_s=60 * HOUR_S, heartbeat_s=HOUR_S):
        status = run_status(run.job.output)
        assert (status.is_running, status.edits_per_second, status.seconds_left) == (
            True,
            None,
            None,
        )
        run.commit(run.write_part("part-a", keys[:1]))
        run.commit(run.write_part("part-b", keys[1:3]))
        taken_at = run_status(run.job.output).lease.taken_at  # type: ignore[union-attr]
        for number, path in enumerate(Ledger.open(run.folder).files()):
            os.utime(run.folder.path_of(path), (taken_at, taken_at + 10 + 4 * number))
        status = run_status(run.job.output)
        assert status.edits_per_second == pytest.approx(0.5)
        assert (status.done, status.pending) == (3, 3)
        assert status.seconds_left == pytest.approx(6.0)
        assert not status.is_silent
        assert row_of(status, "time left, about") == "0:00:06"
        for path in run.folder.list(".lease"):
            os.utime(run.folder.path_of(path), (taken_at, taken_at - 61 * HOUR_S))
        status = run_status(run.job.output)
        assert (status.is_running, status.is_silent, status.seconds_left) == (True, True, None)
        assert row_of(status, "time left, about") is None
        assert str(row_of(status, "silent for")).startswith("2 days, 13:00:0")
    status = run_status(run.job.output)
    assert status.edits_per_second == pytest.approx(0.5)
    assert (status.is_running, status.seconds_left) == (False, None)
    assert row_of(status, "silent for") is None


def test_fences_are_no_commits_and_only_the_latest_files_are_read(run: FinishedRun) -> None:
    table = run.write_part("part-a", run.keys())
    ledger = Ledger.open(run.folder)
    ledger.commit(table)
    fence(run.folder, 1)
    files = ledger.files()
    assert [commit.outcomes for commit in recent_commits(run.folder, files)] == [6]
    assert recent_commits(run.folder, files[:1] + files[1:] * RECENT_FILES) == []

"""A whole job with quotas on a local Ray: rounds, a kill between them, a retry."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from pipeline.errors import Interrupted
from pipeline.job.job import Job
from pipeline.run.driver import retry_failed, run_job
from pipeline.run.stats import RunSummary
from pipeline.verify.verify import verify_run
from tests.pipeline.run.test_driver import (  # noqa: F401 - the last two are fixtures
    InterruptedBy,
    MakeJob,
    Recorder,
    WriteManifest,
    make_job,
    outcomes_of,
    stats_of,
    write_manifest,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")

GOOD, BAD, LATE = "good", "bad", "late"
ROWS = [
    ("red", LATE),
    ("red", GOOD),
    ("red", GOOD),
    ("red", BAD),
    ("red", GOOD),
    ("blue", LATE),
    ("blue", BAD),
    ("blue", GOOD),
    ("green", GOOD),
    ("green", GOOD),
    ("green", GOOD),
]
"""Bad ones are rejected by a rule for their type, the pictures of late ones are not there."""
TWO_EDITS = 6
"""The row with two edits: its source is in two rounds."""
ACCEPTED, SPARED = [1, 2, 7, 8, 9], {3, 4, 10}
ROUNDS = [(6, 0), (9, 6)]
"""(edits done or to do, done): two of each colour; then one of red and two of blue."""


@dataclass(frozen=True)
class Finished:
    job: Job
    summary: RunSummary
    progress: Recorder


@pytest.fixture(scope="module")
def quota_job(write_manifest: WriteManifest, make_job: MakeJob) -> Callable[[], Job]:  # noqa: F811
    """quota_job(): twelve edits, two accepted ones of each colour are enough; always the same."""
    manifest = write_manifest(
        len(ROWS),
        image=[f"pictures/{LATE * (kind == LATE)}{n}.png" for n, (_, kind) in enumerate(ROWS)],
        colour=[colour for colour, _ in ROWS],
        edit_type=[kind for _, kind in ROWS],
        target_prompt=[["a", "b"] if n == TWO_EDITS else ["a"] for n in range(len(ROWS))],
    )
    never = {"score": "changed_share", "at_least": 2.0, "reason": "no_change"}
    sections: dict[str, Any] = {
        "judge": {"clip": None, "structure": None, "rules": {BAD: [never]}},
        "quotas": {"by": ["colour"], "accepted": 2},
        "resources": {"groups_per_block": 1, "cpus_per_actor": 2},
    }
    return lambda: make_job(manifest, **sections)


@pytest.fixture(scope="module")
def finished(ray_cluster: None, quota_job: Callable[[], Job]) -> Finished:
    job, progress = quota_job(), Recorder()
    summary = run_job(job, progress=progress)
    return Finished(job, summary, progress)


def made(job: Job) -> dict[int, str]:
    return {row["row"]: row["outcome"] for row in outcomes_of(job)}


def accepted(job: Job) -> list[int]:
    return [row for row, outcome in made(job).items() if outcome == "accepted"]


def test_rounds_go_on_until_cells_are_full_or_exhausted(finished: Finished, tmp_path: Path) -> None:
    assert finished.progress.started == ROUNDS
    assert finished.progress.finished == len(ROUNDS)
    summary = finished.summary
    assert (summary.edits_planned, summary.already_done, summary.edits_skipped_by_quota) == (
        12,
        0,
        3,
    )
    assert (summary.accepted, summary.rejected, summary.failed) == (5, 2, 2)
    assert accepted(finished.job) == ACCEPTED
    assert made(finished.job).keys() == set(range(len(ROWS))) - SPARED

    verification = verify_run(finished.job)
    assert verification.ok, verification.problems
    assert (verification.accepted, verification.pending, verification.edits_skipped_by_quota) == (
        5,
        0,
        3,
    )
    loaded = datasets.load_dataset(finished.job.output, cache_dir=str(tmp_path))["train"]
    assert sorted(loaded["colour"]) == ["blue", "green", "green", "red", "red"]
    assert "5 images of" in Path(finished.job.output, "README.md").read_text()


def test_the_table_is_in_the_stats(finished: Finished) -> None:
    rows = stats_of(finished.job)["quotas"]
    assert rows == json.loads(json.dumps([vars(row) for row in finished.summary.quotas]))
    shown = [
        (r["cell"]["colour"], r["candidates"], r["done"], r["accepted"], r["short_by"], r["to_do"])
        for r in rows
    ]
    assert shown == [("blue", 4, 4, 1, 1, 0), ("green", 3, 2, 2, 0, 0), ("red", 5, 3, 2, 0, 0)]
    assert stats_of(finished.job)["last_run"]["stages"]["edit"]["rows"] == 9


def test_the_same_command_again_makes_nothing(finished: Finished) -> None:
    progress = Recorder()
    again = run_job(finished.job, progress=progress)
    assert (again.edits_made, again.already_done, again.edits_skipped_by_quota) == (0, 9, 3)
    assert again.quotas == finished.summary.quotas
    assert progress.started == []


@pytest.mark.endurance
def test_a_stopped_run_ends_with_the_same_edits(
    finished: Finished, quota_job: Callable[[], Job]
) -> None:
    job = quota_job()
    with pytest.raises(Interrupted, match="same command goes on"):
        run_job(job, progress=InterruptedBy(signal.SIGTERM))
    before = outcomes_of(job)
    assert 1 <= len(before) < 6, "in the first round"
    verification = verify_run(job)
    assert verification.ok, verification.problems
    assert verification.pending > 0
    summary = run_job(job, progress=Recorder())
    assert (summary.already_done, summary.edits_made) == (len(before), 9 - len(before))
    assert made(job) == made(finished.job)
    by_id = [{r["edit_id"]: r["outcome"] for r in outcomes_of(j)} for j in (job, finished.job)]
    assert by_id[0] == by_id[1]
    assert stats_of(job)["quotas"] == stats_of(finished.job)["quotas"]


def test_a_retry_fills_cells_that_are_short_and_no_others(
    finished: Finished, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    """The late pictures are there, in a copy of the run and of its pictures."""
    manifest = Path(str(finished.job.manifest))
    shutil.copytree(manifest.parent, tmp_path / "input")
    shutil.copytree(finished.job.output, tmp_path / "run")
    places = {"manifest": str(tmp_path / "input" / manifest.name), "output": str(tmp_path / "run")}
    job = finished.job.model_copy(update=places)
    for number in (0, 5):
        picture(7).save(tmp_path / "input" / "pictures" / f"{LATE}{number}.png")
    summary = retry_failed(job, progress=Recorder())
    assert (summary.accepted, summary.edits_made, summary.edits_skipped_by_quota) == (1, 1, 1)
    assert [(row.cell["colour"], row.accepted) for row in summary.quotas] == [
        ("blue", 2),
        ("green", 2),
        ("red", 2),
    ]
    outcomes = made(job)
    assert outcomes[5] == "accepted"
    assert outcomes[0] == "failed", "red is full"
    nothing = retry_failed(job, progress=Recorder())
    assert (nothing.edits_made, nothing.edits_skipped_by_quota) == (0, 1)
    verification = verify_run(job)
    assert verification.ok, verification.problems
    assert (verification.accepted, verification.failed, verification.edits_skipped_by_quota) == (
        6,
        1,
        3,
    )

"""Spot machines that come and go during a run: it finishes, is in order, and wastes little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.job.job import Job
from pipeline.verify.verify import verify_run
from tests.faults.cluster_of_spot_machines import KILLS

pytestmark = [pytest.mark.endurance, pytest.mark.soak]

ROOT = Path(__file__).parent.parent.parent
SEED = 20261125
SOURCES = 40
STEPS = 24
ROWS_PER_BLOCK = 2 * STEPS + 2 * (2 * STEPS) - 1
"""More than a block of one source with two edits takes: inversion, source rows, two rows a step and
edit."""


@pytest.fixture
def job(tmp_path: Path, picture: Callable[..., Image.Image], tiny_checkpoint: Path) -> Job:
    """Each picture a block of its own, a second or so of work."""
    (tmp_path / "pictures").mkdir()
    for number in range(SOURCES):
        picture(number).save(tmp_path / "pictures" / f"{number}.png")
    names = [f"pictures/{number}.png" for number in range(SOURCES)]
    table = pa.table({"image": names, "target_prompt": [["a red cat", "a blue cat"]] * SOURCES})
    pq.write_table(table, tmp_path / "manifest.parquet")
    return Job.model_validate(
        {
            "manifest": str(tmp_path / "manifest.parquet"),
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
            "edit": {"steps": STEPS},
            "resources": {"groups_per_block": 1, "cpus_per_actor": 2, "threads_per_actor": 1},
        }
    )


def run_program(job: Job, tmp_path: Path) -> dict[str, Any]:
    """What the run did, as the program printed it."""
    (tmp_path / "job.json").write_text(job.model_dump_json())
    module, edits = "tests.faults.cluster_of_spot_machines", 2 * SOURCES
    ended = subprocess.run(
        [sys.executable, "-m", module, str(tmp_path / "job.json"), str(edits), str(SEED)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def test_machines_that_come_and_go_cost_little_and_it_is_said_how_much(
    job: Job, tmp_path: Path
) -> None:
    did = run_program(job, tmp_path)
    assert did["killed"] == KILLS
    assert did["added"] > 0
    assert did["by_added"] > 0, "machines that came did work"
    assert (did["accepted"], did["failed"]) == (2 * SOURCES, 0)
    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.accepted, found.pending) == (2 * SOURCES, 0)

    stats = json.loads(Path(job.output, "stats.json").read_bytes())["last_run"]
    edit = stats["stages"]["edit"]
    made, wasted = edit["unet_rows"], stats["unet_rows_wasted"]
    assert made == pytest.approx(stats["unet_rows"] + wasted), "each row is one or the other"
    assert wasted > 0
    assert did["wasted_share"] == pytest.approx(wasted / made)
    assert did["wasted_share"] < 0.15
    # What is told of a dead worker's rows may be a moment old: so much they can be at most.
    most = edit["lost_blocks"] * ROWS_PER_BLOCK
    assert wasted <= most

"""Machines that come during a run are used, and asked for where the cluster can make them."""

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

pytestmark = pytest.mark.endurance

ROOT = Path(__file__).parent.parent.parent
SOURCES = 16


@pytest.fixture
def job(tmp_path: Path, picture: Callable[..., Image.Image], tiny_checkpoint: Path) -> Job:
    """Two actors with a GPU each; each picture a block of its own, a second or so of work."""
    (tmp_path / "pictures").mkdir()
    for number in range(SOURCES):
        picture(number).save(tmp_path / "pictures" / f"{number}.png")
    names = [f"pictures/{number}.png" for number in range(SOURCES)]
    table = pa.table({"image": names, "target_prompt": ["a red cat"] * SOURCES})
    pq.write_table(table, tmp_path / "manifest.parquet")
    return Job.model_validate(
        {
            "manifest": str(tmp_path / "manifest.parquet"),
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
            "edit": {"steps": 30},
            "resources": {
                "ray_address": "auto",
                "gpus_per_actor": 1.0,
                "max_actors": 2,
                "groups_per_block": 1,
                "threads_per_actor": 1,
                "wait_s": 120.0,
            },
        }
    )


def run_program(job: Job, tmp_path: Path, how: str) -> tuple[dict[str, Any], str]:
    """What the run did, as the program printed it, and its log."""
    (tmp_path / "job.json").write_text(job.model_dump_json())
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.cluster_that_grows", str(tmp_path / "job.json"), how],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return dict(json.loads(ended.stdout.splitlines()[-1])), ended.stderr


@pytest.mark.parametrize("how", [pytest.param("by-hand", marks=pytest.mark.soak), "by-itself"])
def test_machines_that_come_during_a_run_take_part(job: Job, tmp_path: Path, how: str) -> None:
    did, log = run_program(job, tmp_path, how)
    assert (did["accepted"], did["failed"]) == (SOURCES, 0)
    assert len(did["machines"]) == 2, "both did work"
    assert sum(did["machines"]) == SOURCES
    found = verify_run(job)
    assert found.ok, found.problems
    stats = json.loads(Path(job.output, "stats.json").read_bytes())
    assert (stats["resources"]["actors"], stats["resources"]["later"]) == (2, 1)
    assert 0 < stats["last_run"]["busy_share"] <= 1
    assert "1 of 2 actors are waiting for a machine" in log
    waited = "waiting for the cluster to have room, for at most 120 s (resources.wait_s)" in log
    assert waited == (how == "by-itself")
    assert did["asked"] == [], "nothing is asked for any more"

"""A cluster that loses a machine in the middle of a run, and machines that are almost too small."""

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
from tests.builders.job_on_s3 import EDIT_ROWS, SOURCE_ROWS

pytestmark = pytest.mark.endurance

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def job(tmp_path: Path, picture: Callable[..., Image.Image], tiny_checkpoint: Path) -> Job:
    """Eight pictures, each a block of its own, in a local folder."""
    (tmp_path / "pictures").mkdir()
    for number in range(8):
        picture(number).save(tmp_path / "pictures" / f"{number}.png")
    names = [f"pictures/{number}.png" for number in range(8)]
    table = pa.table({"image": names, "target_prompt": ["a red cat"] * 8})
    pq.write_table(table, tmp_path / "manifest.parquet")
    return Job.model_validate(
        {
            "manifest": str(tmp_path / "manifest.parquet"),
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
            "resources": {"groups_per_block": 1, "cpus_per_actor": 2},
        }
    )


def run_program(module: str, job: Job, tmp_path: Path) -> dict[str, Any]:
    """What it printed, as JSON."""
    (tmp_path / "job.json").write_text(job.model_dump_json())
    ended = subprocess.run(
        [sys.executable, "-m", module, str(tmp_path / "job.json")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def test_a_machine_that_goes_away_for_good_costs_no_edit(job: Job, tmp_path: Path) -> None:
    did = run_program("tests.faults.cluster_that_loses_a_machine", job, tmp_path)
    assert did["killed"] == 1
    assert (did["accepted"], did["failed"]) == (8, 0)
    assert did["unet_rows"] == pytest.approx(8 * (SOURCE_ROWS + EDIT_ROWS))
    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.accepted, found.pending) == (8, 0)


@pytest.mark.soak
def test_two_cpus_are_enough_to_run_and_to_go_on_and_one_is_refused(
    job: Job, tmp_path: Path
) -> None:
    """One for the actor, one for reading: nothing hangs, and below that it is said."""
    resources = job.resources.model_copy(update={"cpus_per_actor": None})
    smallest = job.model_copy(update={"resources": resources})
    happened = run_program("tests.faults.smallest_machine", smallest, tmp_path)
    assert "1 CPUs must stay free for reading; the cluster has 1 CPUs" in happened["refused"]
    assert "the same command goes on" in happened["interrupted"]
    assert happened["accepted"] == "8"
    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.accepted, found.pending) == (8, 0)


@pytest.mark.soak
def test_kinds_of_devices_work_side_by_side_and_a_machine_without_one_only_reads(
    job: Job, tmp_path: Path
) -> None:
    """Two actors share the one GPU of a machine, one has another kind, and readers have nothing but
    the machine without a GPU: no other has a CPU left."""
    pools = [{"accelerator": "A10G", "gpus_per_actor": 0.5}, {"accelerator": "H100"}]
    resources = {"groups_per_block": 1, "free_cpus": 2, "pools": pools}
    job = Job.model_validate(job.model_dump() | {"resources": resources})
    did = run_program("tests.faults.cluster_of_kinds", job, tmp_path)
    assert sorted(did["machines"]) == ["A10G", "A10G", "H100"]
    assert (did["accepted"], did["failed"]) == (8, 0)
    assert did["stages"]["decode"]["rows"] == 8
    assert did["unet_rows"] == pytest.approx(8 * (SOURCE_ROWS + EDIT_ROWS))
    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.accepted, found.pending) == (8, 0)

"""Devices that fail and models that cannot be loaded cost their place, and no row; the run stops if
no place is left. The loss of the supervisor ends a run cleanly."""

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

from pipeline.cluster.pool import STORE_SHARE
from pipeline.job.job import Job
from pipeline.verify.verify import verify_run

pytestmark = [pytest.mark.endurance, pytest.mark.usefixtures("fork_server")]

ROOT = Path(__file__).parent.parent.parent
SOURCES = 12


@pytest.fixture
def job(tmp_path: Path, picture: Callable[..., Image.Image], tiny_checkpoint: Path) -> Job:
    """Twelve pictures, each a block of its own."""
    (tmp_path / "pictures").mkdir()
    for number in range(SOURCES):
        picture(number).save(tmp_path / "pictures" / f"{number}.png")
    names = [f"pictures/{number}.png" for number in range(SOURCES)]
    prompts = ["a red cat"] * (SOURCES - 1) + ["a blue cat"]
    table = pa.table({"image": names, "target_prompt": prompts})
    pq.write_table(table, tmp_path / "manifest.parquet")
    return Job.model_validate(
        {
            "manifest": str(tmp_path / "manifest.parquet"),
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
            "resources": {"groups_per_block": 1, "gpus_per_actor": 1.0, "threads_per_actor": 1},
        }
    )


def run_broken(job: Job, tmp_path: Path, **faults: Any) -> tuple[dict[str, Any], str]:
    """What the run did, as the program printed it, and its log."""
    (tmp_path / "job.json").write_text(job.model_dump_json())
    (tmp_path / "faults.json").write_text(json.dumps(faults))
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.cluster_with_broken_places"),
            *(str(tmp_path / "job.json"), str(tmp_path), str(tmp_path / "faults.json")),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return dict(json.loads(ended.stdout.splitlines()[-1])), ended.stderr


def assert_in_order(job: Job, accepted: int, failed: int = 0) -> None:
    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.accepted, found.failed, found.pending) == (
        accepted,
        failed,
        SOURCES - accepted - failed,
    )


def test_a_device_that_fails_is_left_out_and_no_row_is_blamed(job: Job, tmp_path: Path) -> None:
    did, log = run_broken(job, tmp_path, machines=3, device=1, first=2)
    assert (did["accepted"], did["failed"]) == (SOURCES, 0)
    assert did["broken"] == [2, 0, 0], "tried again once"
    edit = did["stages"]["edit"]
    assert edit["device_failures"] == 2
    assert "worker_deaths" not in edit
    assert "left out, while others go on: GPU 0 of " in log
    assert "the device failed 2 times in a row: CUDA error: uncorrectable ECC error" in log
    assert_in_order(job, accepted=SOURCES)


def test_devices_that_all_fail_stop_the_run_and_the_same_command_goes_on(
    job: Job, tmp_path: Path
) -> None:
    did, _ = run_broken(job, tmp_path, machines=2, device=2)
    assert (did["kind"], did["exit_code"]) == ("WorkerError", 1)
    assert "none of 2 workers can work" in did["error"]
    assert "failed 2 times in a row: CUDA error: uncorrectable ECC error" in did["error"]
    assert did["broken"] == [2, 2]
    assert_in_order(job, accepted=0)
    did, _ = run_broken(job, tmp_path, machines=2)
    assert (did["accepted"], did["failed"]) == (SOURCES, 0)
    assert_in_order(job, accepted=SOURCES)


def test_a_row_that_breaks_devices_fails_and_the_devices_work_on(job: Job, tmp_path: Path) -> None:
    did, log = run_broken(job, tmp_path, machines=2, prompt="blue")
    assert (did["accepted"], did["failures_by_code"]) == (SOURCES - 1, {"worker_died": 1})
    assert sum(did["broken"]) == did["stages"]["edit"]["device_failures"]
    assert "because their device failed" in did["failure_examples"]["worker_died"]
    assert_in_order(job, accepted=SOURCES - 1, failed=1)
    assert sum(did["broken"]) <= 4, log


def test_a_machine_that_cannot_load_the_model_is_left_out(job: Job, tmp_path: Path) -> None:
    did, log = run_broken(job, tmp_path, machines=3, model=1, first=1)
    assert (did["accepted"], did["failed"]) == (SOURCES, 0)
    assert did["broken"][1:] == [0, 0]
    assert did["broken"][0] == 1, "once in a pass, and there was one"
    assert "the model cannot be used: [Errno 28] No space left on device" in log
    assert_in_order(job, accepted=SOURCES)


def test_a_model_that_cannot_be_loaded_anywhere_stops_the_run(job: Job, tmp_path: Path) -> None:
    did, _ = run_broken(job, tmp_path, machines=2, model=2)
    assert did["kind"] == "WorkerError"
    assert "none of 2 workers can work" in did["error"]
    assert "the model cannot be used: [Errno 28] No space left on device" in did["error"]
    assert did["broken"] == [1, 1]
    assert_in_order(job, accepted=0)


def test_few_blocks_find_the_one_machine_that_can(job: Job, tmp_path: Path) -> None:
    """One block, so one worker; two of three machines are of no use for it."""
    resources = job.resources.model_copy(update={"groups_per_block": SOURCES})
    job = job.model_copy(update={"resources": resources})
    did, _ = run_broken(job, tmp_path, machines=3, device=1, model=1)
    assert (did["accepted"], did["failed"]) == (SOURCES, 0)
    assert_in_order(job, accepted=SOURCES)


def test_devices_of_several_kinds_are_left_out_alike(job: Job, tmp_path: Path) -> None:
    pools = [{"accelerator": "A10G"}, {"accelerator": "H100"}]
    resources = {"groups_per_block": 1, "pools": pools}
    job = Job.model_validate(job.model_dump() | {"resources": resources})
    did, log = run_broken(
        job, tmp_path, machines=3, device=1, model=1, first=3, accelerators=["A10G", "H100", "H100"]
    )
    assert (did["accepted"], did["failed"]) == (SOURCES, 0)
    assert did["broken"][0] == 2
    assert "the device failed 2 times in a row" in log
    assert "the model cannot be used" in log
    assert_in_order(job, accepted=SOURCES)


def test_a_supervisor_that_is_killed_ends_the_run_and_the_same_command_goes_on(
    job: Job, tmp_path: Path
) -> None:
    did, _ = run_broken(job, tmp_path, machines=2, kills_supervisor=True)
    assert did["kind"] in ("SupervisorLostError", "WorkerError")
    assert "the run's supervisor, a process on the driver's machine, is gone" in did["error"]
    assert "start the same command again" in did["error"]
    assert did["exit_code"] == 1
    found = verify_run(job)  # a part may be finished that is not in the ledger yet
    assert 0 < found.accepted < SOURCES
    assert found.failed == 0
    did, _ = run_broken(job, tmp_path, machines=2)
    assert (did["accepted"], did["failed"]) == (SOURCES - did["already_done"], 0)
    assert did["already_done"] >= found.accepted
    assert_in_order(job, accepted=SOURCES)


def test_readers_ahead_take_no_more_than_the_stated_share_of_the_store(
    job: Job, tmp_path: Path
) -> None:
    """Pictures of 3 MB each, many times what the reading machine's small store holds, and a worker
    that is slow. Its own machine has a large store, which must not count: it reads nothing."""
    names = [f"pictures/{number % SOURCES}.png" for number in range(80)]
    table = pa.table({"id": [*map(str, range(80))], "image": names, "target_prompt": ["x"] * 80})
    pq.write_table(table, tmp_path / "manifest.parquet")
    store_bytes, block_bytes = 100 * 2**20, 2 * 3 * 1024**2
    job = Job.model_validate(
        job.model_dump()
        | {
            "editor": "none",
            "edit": {"size_px": 1024},
            "images": {"format": "jpeg"},
            "resources": job.resources.model_dump() | {"groups_per_block": 2},
        }
    )
    did, _ = run_broken(
        job,
        tmp_path,
        machines=1,
        slow_s=0.5,
        head={"num_cpus": 8, "object_store_memory": store_bytes},
        each={"object_store_memory": 8 * store_bytes},
    )
    assert (did["accepted"], did["failed"]) == (80, 0)
    assert did["store_spilled_bytes"] == 0
    assert did["store_peak_bytes"] <= STORE_SHARE * store_bytes
    assert did["store_peak_bytes"] > 3 * block_bytes, "readers do run ahead"


def test_actors_share_the_cores_of_their_own_machine(job: Job, tmp_path: Path) -> None:
    """It used to be those of the smallest machine, on all of them."""
    resources = job.resources.model_copy(update={"threads_per_actor": None})
    job = Job.model_validate(
        job.model_dump() | {"editor": "none", "resources": resources.model_dump()}
    )
    did, _ = run_broken(job, tmp_path, machines=2, cpus=[2, 6], loaded=2)
    assert (did["accepted"], did["failed"]) == (SOURCES, 0)
    assert did["threads"] == [[0, 2, 1.0], [1, 6, 1.0]]

"""Whole runs with workers on a CUDA GPU, each in its own local Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jobs.demo_scenes import write_scenes
from jobs.job_file.ready_made import BUILTIN_FOLDER
from pipeline.job.file import load_job
from pipeline.job.job import Job
from pipeline.run.driver import run_job
from pipeline.run.stats import RunSummary
from pipeline.verify.recompute import recompute_sample
from pipeline.verify.verify import verify_run
from tests.faults.nobody import Nobody

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]

SCENES = 12
EDITS = 5 * SCENES


@pytest.fixture(scope="module", autouse=True)
def ray_with_gpu() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=1,
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), SCENES).manifest


def run(file: str, manifest: Path, output: Path, *settings: str) -> tuple[Job, RunSummary]:
    job = load_job(BUILTIN_FOLDER / file, [f"manifest={manifest}", f"output={output}", *settings])
    return job, run_job(job, progress=Nobody())


def test_a_run_takes_the_gpu_and_half_precision(manifest: Path, tmp_path: Path) -> None:
    job, summary = run("demo.yaml", manifest, tmp_path / "run", "resources.groups_per_block=4")
    assert (summary.accepted, summary.failed) == (EDITS, 0)
    assert verify_run(job).ok
    again = recompute_sample(job, 10)
    assert (again.device, again.dtype) == ("cuda", "float16")
    assert again.compared == 10
    assert again.ok, [str(each) for each in again.comparisons]


def test_two_workers_share_a_gpu(manifest: Path, tmp_path: Path) -> None:
    job, summary = run(
        "demo.yaml",
        manifest,
        tmp_path / "run",
        "resources.gpus_per_actor=0.5",
        "resources.groups_per_block=2",
    )
    assert (summary.accepted, summary.failed) == (EDITS, 0)
    assert verify_run(job).ok


def test_a_judge_works_beside_the_model(manifest: Path, tmp_path: Path) -> None:
    job, summary = run("relabel.yaml", manifest, tmp_path / "run")
    assert summary.failed == 0
    assert summary.accepted > 0
    assert summary.accepted + summary.rejected == summary.edits_planned
    assert verify_run(job).ok
    assert summary.stages["judge"]["seconds"] > 0

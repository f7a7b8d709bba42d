"""`from pipeline import Job, run_job, plan_job, open_run`: the face that Python programs use."""

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
import ray
import yaml
from PIL import Image

import pipeline
from pipeline import Job, load_job, open_run, plan_job, run_job
from pipeline.errors import JobError, ManifestError

ROOT = Path(__file__).parent.parent.parent
PUBLIC_SURFACE = [
    "Job",
    "OpenedRun",
    "Plan",
    "RunSummary",
    "load_job",
    "open_run",
    "plan_job",
    "run_job",
]
HEAVY = ("torch", "ray", "pyarrow", "pydantic", "numpy", "fsspec", "yaml")

IN_A_PROCESS = """
import asyncio, json, sys, threading
import ray
from pipeline import run_job

def accepted(name):
    summary = run_job("job.yaml", overrides=[f"output={name}"])
    return [summary.accepted, ray.is_initialized()]

async def in_a_running_loop():
    return accepted("loop")

found = {"loop": asyncio.run(in_a_running_loop())}
thread = threading.Thread(target=lambda: found.update(thread=accepted("thread")))
thread.start()
thread.join()
print(json.dumps(found))
"""


def in_python(code: str, folder: Path) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def values(tmp_path: Path, picture: Callable[..., Image.Image]) -> dict[str, Any]:
    """A job of two pictures with two edits each that no model makes."""
    for number in range(2):
        picture(number, 40, 30).save(tmp_path / f"{number}.png")
    columns = {"image": ["0.png", "1.png"], "target_prompt": [["a red cup", "a blue cup"]] * 2}
    pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    values = {
        "manifest": str(tmp_path / "manifest.parquet"),
        "output": str(tmp_path / "run"),
        "editor": "none",
        "edit": {"size_px": 32},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return values


class Recorder:
    """A progress sink that keeps what it receives."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.outcomes = 0
        self.finished = 0

    def start(self, total: int, done: int) -> None:
        self.started.append((total, done))

    def advance(self, outcomes_table: pa.Table) -> None:
        self.outcomes += len(outcomes_table)

    def finish(self) -> None:
        self.finished += 1


def test_importing_the_package_loads_nothing_else(tmp_path: Path) -> None:
    code = f"import sys, pipeline; print([m for m in {HEAVY} if m in sys.modules], dir(pipeline))"
    printed = in_python(code, tmp_path)
    assert printed.startswith("[] ")
    assert all(f"'{name}'" in printed for name in PUBLIC_SURFACE)


def test_the_public_surface() -> None:
    """Change this list on purpose, and the changelog with it."""
    assert sorted(pipeline.__all__) == sorted(PUBLIC_SURFACE)
    for name in PUBLIC_SURFACE:
        assert getattr(pipeline, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pipeline' has no attribute 'nonsense'"):
        pipeline.nonsense  # noqa: B018


def test_plans_of_a_file_a_mapping_and_a_job_are_the_same_and_write_nothing(
    values: dict[str, Any], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    plans = [
        plan_job(tmp_path / "job.yaml"),
        plan_job(str(tmp_path / "job.yaml")),
        plan_job(values),
        plan_job(Job.model_validate(values)),
    ]
    assert {plan.plan_id for plan in plans} == {plans[0].plan_id}
    assert (plans[0].edits_total, plans[0].edits_pending, plans[0].sources) == (4, 4, 2)
    assert sorted(tmp_path.rglob("*")) == before


def test_overrides_count_for_a_file_a_mapping_and_a_job(
    values: dict[str, Any], tmp_path: Path
) -> None:
    for source in (tmp_path / "job.yaml", values, Job.model_validate(values)):
        plan = plan_job(source, overrides=["edit.size_px=64", "images.format=webp"])
        assert plan.parameters.width_px == 64
    assert values["edit"] == {"size_px": 32}, "the caller's mapping is left as it is"


def test_mistakes_have_the_text_that_the_command_prints(
    values: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(file.read_text() + "pictures: {}\n")
    line = file.read_text().count("\n")
    with pytest.raises(JobError, match=rf"^{file}:{line}: pictures: unknown key"):
        plan_job(file)
    with pytest.raises(JobError, match=r"^job: edit.steps: must be >= 1 \(got 0\)$"):
        run_job({**values, "edit": {"steps": 0}})
    with pytest.raises(JobError, match=r"^override 'edit.steps=0': edit.steps: must be >= 1"):
        plan_job(Job.model_validate(values), overrides=["edit.steps=0"])
    with pytest.raises(JobError, match=r"there is no such job file; .* holds job.yaml"):
        load_job(tmp_path / "jo.yaml")
    pq.write_table(pa.table({"image": ["0.png"]}), tmp_path / "manifest.parquet")
    with pytest.raises(ManifestError, match="target_prompt"):
        plan_job(values)


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_runs_on_the_ray_that_is_there_and_leaves_it_running(
    values: dict[str, Any],
) -> None:
    recorder = Recorder()
    job = Job.model_validate(values)
    summary = run_job(job, progress=recorder)
    assert (summary.edits_planned, summary.accepted, summary.output) == (4, 4, job.output)
    assert (recorder.started, recorder.outcomes, recorder.finished) == ([(4, 0)], 4, 1)
    assert ray.is_initialized()
    again = run_job(values)
    assert (again.already_done, again.edits_made) == (4, 0)
    assert plan_job(values).edits_pending == 0
    run = open_run(job.output)
    by_edit = [("edit_id", "ascending")]
    assert run.edits().sort_by(by_edit)["edit_id"].equals(run.outcomes()["edit_id"])
    for edit in run.edits().to_pylist():
        assert Path(run.picture_path(edit)).is_file()
        assert run.picture(edit).size == (32, 32)
        assert Path(run.source_path(edit)).is_file()
    assert run.statistics["last_run"]["accepted"] == 4
    assert run.status().done == 4
    assert run.job is not None
    assert (run.job.editor, run.job.output) == ("none", job.output)


def test_a_job_starts_and_ends_its_own_ray_in_a_running_loop_and_in_a_thread(
    values: dict[str, Any], tmp_path: Path
) -> None:
    printed = in_python(IN_A_PROCESS, tmp_path)
    assert json.loads(printed) == {"loop": [4, False], "thread": [4, False]}

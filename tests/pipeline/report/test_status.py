"""The state of a run, from its folder alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import StorageError
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.parts import adopt_orphan_parts
from pipeline.plan.plan import make_plan
from pipeline.report.status import run_status
from tests.builders.finished_run import FinishedRun
from tests.servers.stores import Store


@pytest.fixture
def run(
    store: Store,
    tiny_checkpoint: Path,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> FinishedRun:
    """An empty run of a job with four edits."""
    columns = {"image": ["a.png", "b.png"], "target_prompt": [["x", "y"], ["x", "y"]]}
    job = Job.model_validate(
        {
            "manifest": store.put_table("m.parquet", columns),
            "output": store.url("run"),
            "storage_options": store.storage_options,
            "model": {"checkpoint": str(tiny_checkpoint)},
        }
    )
    return FinishedRun(job, png(picture()))


def test_a_run_from_its_plan_to_its_end(run: FinishedRun) -> None:
    keys = run.keys()
    make_plan(run.job)
    status = run_status(run.job.output, run.job.storage_options)
    assert (status.pending, status.done, status.parts, status.stats) == (4, 0, 0, {})

    run.commit(run.write_part("part-a", keys[:1], failed=keys[1:2]))
    status = run_status(run.job.output, run.job.storage_options)
    assert (status.pending, status.done, status.parts, status.ledger_files) == (2, 2, 1, 1)
    assert dict(status.counts.failed_by_code) == {"decode_failed": 1}

    run.write_part("part-b", keys[2:])
    status = run_status(run.job.output, run.job.storage_options)
    assert (status.pending, status.unadopted_parts) == (2, 1)

    adopt_orphan_parts(run.folder, Ledger.open(run.folder))
    run.folder.replace("stats.json", b'{"seconds": 1.5}')
    status = run_status(run.job.output, run.job.storage_options)
    assert (status.pending, status.unadopted_parts, status.parts) == (0, 0, 2)
    assert status.stats == {"seconds": 1.5}
    assert not status.is_in_rounds


def test_the_plan_that_counts_is_the_one_made_last(run: FinishedRun) -> None:
    keys = run.keys()
    make_plan(run.job)
    run.commit(run.write_part("part-a", keys[:1]))
    make_plan(run.job)
    assert run_status(run.job.output, run.job.storage_options).pending == 3
    run.commit(run.write_part("part-b", keys[1:]))
    more = Job.model_validate(run.job.model_dump(mode="json") | {"edit": {"steps": 3}})
    assert make_plan(more).edits_pending == 4
    assert run_status(run.job.output, run.job.storage_options).pending == 4


def test_an_interrupted_plan_is_no_plan(run: FinishedRun) -> None:
    plan = make_plan(run.job)
    run.folder.fs.rm(run.folder.path_of(f".plan/{plan.plan_id}/plan.json"))
    assert run_status(run.job.output, run.job.storage_options).pending is None


@pytest.mark.parametrize("content", [b"{", b"[]"])
def test_a_damaged_summary_is_named(run: FinishedRun, content: bytes) -> None:
    make_plan(run.job)
    run.folder.replace("stats.json", content)
    with pytest.raises(StorageError, match=r"stats\.json is damaged"):
        run_status(run.job.output, run.job.storage_options)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(StorageError, match=r"there is no run in .*output folder of a job"):
            run_status(str(folder))

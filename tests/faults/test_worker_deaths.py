"""Workers that are killed or stand still: at most the row that does it twice is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.run.driver import retry_failed, run_job
from pipeline.verify.verify import verify_run
from tests.builders.job_on_s3 import EDIT_ROWS, SOURCE_ROWS, JobOnS3, write_job
from tests.faults.injected import QUARANTINED, WENT_ON, survived
from tests.faults.nobody import Nobody
from tests.servers.faulty_s3 import Fault, FaultyS3, Kind

pytestmark = [pytest.mark.endurance, pytest.mark.usefixtures("ray_cluster")]


def assert_in_order(target: JobOnS3, accepted: int, failed: int) -> None:
    found = verify_run(target.past_the_faults)
    assert found.ok, found.problems
    assert (found.accepted, found.failed, found.pending) == (accepted, failed, 0)


def test_a_worker_that_is_killed_before_or_after_any_of_its_writes_costs_nothing(
    faulty_s3: FaultyS3, picture: Callable[..., Image.Image], tiny_checkpoint: Path
) -> None:
    """One kill in each block, as an out-of-memory killer would; and two of fetching workers."""
    target = write_job(
        faulty_s3, "killed", picture, tiny_checkpoint, sources=8, prompts=("a red cat",)
    )
    of = target.keys()
    parts = [target.part_of([key]) for key in of]
    faulty_s3.inject(
        Fault("edited image", Kind.KILL_BEFORE, key=of[0].edit_id.hex()),
        Fault("edited image", Kind.KILL_AFTER, key=of[1].edit_id.hex()),
        Fault("source image", Kind.KILL_BEFORE, key=of[2].source_id.hex()),
        Fault("source image", Kind.KILL_AFTER, key=of[3].source_id.hex()),
        Fault("metadata", Kind.KILL_BEFORE, key=parts[4]),
        Fault("metadata", Kind.KILL_AFTER, key=parts[5]),
        Fault("read picture", Kind.KILL_BEFORE, key="pictures/6.png"),
        Fault("read picture", Kind.KILL_AFTER, key="pictures/7.png"),
    )
    summary = run_job(target.job, progress=Nobody())
    faults = faulty_s3.disarm()
    assert (summary.accepted, summary.failed) == (8, 0)
    assert summary.unet_rows == pytest.approx(8 * (SOURCE_ROWS + EDIT_ROWS))
    times = [target.times_made()[key.edit_id] for key in of]
    # What was written is found again and not written once more; a finished part is not made again.
    assert times == [1] * 8
    assert_in_order(target, accepted=8, failed=0)
    survived(faults, WENT_ON)


@pytest.mark.parametrize("stage", ["edit", "decode"])
def test_a_row_that_kills_two_workers_is_quarantined_and_its_neighbours_are_edited(
    stage: str, faulty_s3: FaultyS3, picture: Callable[..., Image.Image], tiny_checkpoint: Path
) -> None:
    target = write_job(
        faulty_s3, f"poison-{stage}", picture, tiny_checkpoint, sources=4, groups_per_block=4
    )
    keys = target.keys()
    of = [[key for key in keys if key.row == row] for row in range(4)]
    poison = {
        "edit": Fault("edited image", Kind.KILL_BEFORE, lasting=True, key=of[2][0].edit_id.hex()),
        "decode": Fault("read picture", Kind.KILL_AFTER, lasting=True, key="pictures/2.png"),
    }[stage]
    faulty_s3.inject(poison)
    summary = run_job(target.job, progress=Nobody())
    faults = faulty_s3.disarm()
    assert poison.fired == 2
    assert (summary.accepted, summary.failures_by_code) == (6, {"worker_died": 2})
    assert target.ledger.failed_ids(["worker_died"]) == {key.edit_id for key in of[2]}
    assert_in_order(target, accepted=6, failed=2)
    again = retry_failed(target.job, progress=Nobody())
    assert (again.accepted, again.failed) == (2, 0)
    assert again.unet_rows == pytest.approx(SOURCE_ROWS + 2 * EDIT_ROWS)
    assert_in_order(target, accepted=8, failed=0)
    survived(faults, QUARANTINED)


def test_a_row_that_stands_still_fails_and_its_neighbours_are_edited(
    faulty_s3: FaultyS3, picture: Callable[..., Image.Image], tiny_checkpoint: Path
) -> None:
    """Its picture's put is never answered, and the client would wait for minutes."""
    faulty_s3.read_timeout_s = 600
    target = write_job(faulty_s3, "stuck", picture, tiny_checkpoint, sources=3, groups_per_block=3)
    keys = target.keys()
    of = [[key for key in keys if key.row == row] for row in range(3)]
    stuck = Fault("edited image", Kind.TIMEOUT, lasting=True, key=of[1][1].edit_id.hex())
    faulty_s3.inject(stuck)
    limits = target.job.failures.model_copy(update={"max_stall_s": 4.0})
    job = target.job.model_copy(update={"failures": limits})
    summary = run_job(job, progress=Nobody())
    faults = faulty_s3.disarm()
    assert stuck.fired == 2
    assert (summary.accepted, summary.failures_by_code) == (4, {"worker_died": 2})
    assert target.ledger.failed_ids(["worker_died"]) == {key.edit_id for key in of[1]}
    assert_in_order(target, accepted=4, failed=2)
    survived(faults, QUARANTINED)

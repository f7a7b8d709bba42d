"""What an object store can do to a run: nothing that its retries, or `fpe retry`, do not mend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stamina
from PIL import Image

from pipeline.run.driver import retry_failed, run_job
from pipeline.verify.verify import verify_run
from pipeline.write.part import part_name
from tests.builders.job_on_s3 import (
    EDIT_ROWS,
    SOURCE_ROWS,
    leave_what_a_killed_run_leaves,
    write_job,
)
from tests.faults.injected import RETRIED, WENT_ON, survived
from tests.faults.nobody import Nobody
from tests.servers.faulty_s3 import Fault, FaultyS3, Kind
from tests.servers.prometheus import Samples, by_stage, scrape

DRIVER_WRITES = (
    *("lease", "clock", "fence", "work list", "plan", "schema", "config", "card"),
    *("ledger", "stats", "heartbeat", "release"),
)
WORKER_WRITES = ("edited image", "source image", "metadata")
WRITES = (*DRIVER_WRITES, *WORKER_WRITES)
READS = (
    *("read lease", "read ledger", "read manifest", "read metadata", "read work list"),
    *("read picture", "list leases", "list ledger files", "list parts", "look for lease"),
)
OVERLOADED = "the store is overloaded"
BROKEN = "connections break"
BY_HALF = "answers and uploads come by half, or never"
WITH_BODY = tuple(point for point in READS if point.startswith("read "))


def faults_that_pass(name: str) -> list[Fault]:
    """Two in a row at every point, where the second meets what the first made the run try again."""
    if name == OVERLOADED:
        points = (*WRITES, *READS)
        first = [Fault(point, Kind.ERROR_500) for point in points]
        return first + [Fault(point, Kind.SLOW_DOWN, nth=2) for point in points]
    if name == BROKEN:
        first = [Fault(point, Kind.RESET) for point in (*WRITES, *READS)]
        return first + [Fault(point, Kind.LOST_ANSWER, nth=2) for point in WRITES]
    slow = ("lease", "fence", "plan", "ledger", "stats", "heartbeat", "list parts", *WORKER_WRITES)
    cut_off = ("work list", "ledger", "stats", "config", *WORKER_WRITES)
    return [
        *(Fault(point, Kind.TIMEOUT) for point in slow),
        *(Fault(point, Kind.PARTIAL_BODY) for point in WITH_BODY),
        *(Fault(point, Kind.HALF_UPLOAD, nth=2) for point in cut_off if point in slow),
        *(Fault(point, Kind.HALF_UPLOAD) for point in cut_off if point not in slow),
    ]


@pytest.fixture(autouse=True)
def _the_driver_does_not_wait_between_tries() -> Iterator[None]:
    with stamina.set_testing(True, attempts=4):
        yield


def test_there_are_more_than_forty_distinct_faults() -> None:
    """Those of the next test, which fails where one of them does not happen."""
    faults = [f for name in (OVERLOADED, BROKEN, BY_HALF) for f in faults_that_pass(name)]
    assert len({(fault.point, fault.kind) for fault in faults}) > 40


@pytest.mark.endurance
@pytest.mark.parametrize("what", [OVERLOADED, BROKEN, BY_HALF])
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_goes_on_by_itself_when(
    what: str,
    faulty_s3: FaultyS3,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
    tiny_checkpoint: Path,
) -> None:
    """Every point meets its faults in one run, which takes over what a killed one left."""
    faulty_s3.read_timeout_s = 1 if what == BY_HALF else 10
    target = write_job(faulty_s3, what.replace(" ", "-"), picture, tiny_checkpoint, sources=5)
    done = leave_what_a_killed_run_leaves(target, png(picture(9)))
    faulty_s3.inject(*faults_that_pass(what))
    summary = run_job(target.job, progress=Nobody())
    faults = faulty_s3.disarm()
    assert (summary.edits_planned, summary.already_done) == (10, done)
    assert (summary.accepted, summary.failed) == (6, 0)
    assert summary.unet_rows == pytest.approx(3 * (SOURCE_ROWS + 2 * EDIT_ROWS))
    verification = verify_run(target.past_the_faults)
    assert verification.ok, verification.problems
    assert (verification.accepted, verification.pending) == (10, 0)
    survived(faults, WENT_ON)
    retries = {name: each["retries"] for name, each in summary.stages.items() if "retries" in each}
    assert sum(retries.values()) > 0

    def is_told(samples: Samples) -> bool:
        told = by_stage(samples, "fpe_store_retries_total")
        return all(told.get(stage, 0.0) == tries for stage, tries in retries.items())

    scrape(summary.run, is_told)


@pytest.mark.endurance
@pytest.mark.usefixtures("ray_cluster")
def test_what_the_store_refuses_for_good_costs_those_edits_and_a_retry_makes_them(
    faulty_s3: FaultyS3, picture: Callable[..., Image.Image], tiny_checkpoint: Path
) -> None:
    target = write_job(faulty_s3, "refused", picture, tiny_checkpoint, sources=5)
    keys = target.keys()
    of = [[key for key in keys if key.row == row] for row in range(5)]
    part = part_name(key.edit_id for key in of[2])
    faulty_s3.inject(
        Fault("edited image", Kind.DENIED, lasting=True, key=of[0][1].edit_id.hex()),
        Fault("source image", Kind.DENIED, lasting=True, key=of[1][0].source_id.hex()),
        Fault("metadata", Kind.DENIED, lasting=True, key=part),
        Fault("read picture", Kind.DENIED, lasting=True, key="pictures/3.png"),
    )
    summary = run_job(target.job, progress=Nobody())
    faults = faulty_s3.disarm()
    assert summary.accepted == 3
    assert summary.failures_by_code == {"write_failed": 5, "source_forbidden": 2}
    failed = {key.edit_id for key in (of[0][1], *of[1], *of[2], *of[3])}
    assert target.ledger.failed_ids() == failed
    made_before = target.times_made()

    again = retry_failed(target.job, progress=Nobody())
    assert (again.accepted, again.failed) == (7, 0)
    assert again.unet_rows == pytest.approx(4 * SOURCE_ROWS + 7 * EDIT_ROWS)
    made = target.times_made()
    assert all(
        made[key.edit_id] == made_before[key.edit_id] for key in keys if key.edit_id not in failed
    )
    verification = verify_run(target.past_the_faults)
    assert verification.ok, verification.problems
    assert (verification.accepted, verification.failed, verification.pending) == (10, 0, 0)
    survived(faults, RETRIED)

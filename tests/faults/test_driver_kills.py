"""The driver is killed, or refused, at each of its writes; the same command goes on every time."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import yaml
from PIL import Image

from pipeline.verify.verify import Verification, verify_run
from tests.builders.job_on_s3 import EDIT_ROWS, SOURCE_ROWS, JobOnS3, write_job
from tests.faults.fpe_commands import Ended, FpeCommands
from tests.faults.injected import SAME_COMMAND, survived
from tests.servers.faulty_s3 import Fault, FaultyS3, Kind

WRITES = (
    *("lease", "fence", "work list", "plan", "schema", "config", "card"),
    *("ledger", "card", "stats", "release"),
)
"""Of the driver, in their order."""
KILLED = -signal.SIGKILL
_WAITS_TO_BE_ADOPTED = "run the same job again, it takes them over"

pytestmark = [pytest.mark.endurance, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def fpe(tmp_path_factory: pytest.TempPathFactory, s3_server: object) -> Iterator[FpeCommands]:
    with FpeCommands(tmp_path_factory.mktemp("fpe")) as commands:
        yield commands


@pytest.fixture
def run_again(fpe: FpeCommands, tmp_path: Path) -> Callable[[JobOnS3], Ended]:
    """run_again(job): the same command, on the Ray of the tests."""
    file = tmp_path / "job.yaml"

    def run(target: JobOnS3) -> Ended:
        values = target.job.model_dump(mode="json", exclude_defaults=True)
        values["resources"]["ray_address"] = ray.get_runtime_context().gcs_address
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return fpe.run("run", str(file))

    return run


def verified(target: JobOnS3) -> Verification:
    """What `fpe verify` finds; nothing is wrong but that parts wait to be adopted."""
    found = verify_run(target.past_the_faults)
    wrong = [text for text in found.problems if not text.endswith(_WAITS_TO_BE_ADOPTED)]
    assert not wrong
    return found


def test_a_driver_that_is_refused_or_killed_at_each_write(
    faulty_s3: FaultyS3,
    picture: Callable[..., Image.Image],
    tiny_checkpoint: Path,
    run_again: Callable[[JobOnS3], Ended],
) -> None:
    """Every run is the same command again for the fault before it, and has to get to the next."""
    target = write_job(
        faulty_s3, "each-write", picture, tiny_checkpoint, sources=3, groups_per_block=3
    )
    for write in WRITES:
        for kind in (Kind.DENIED, Kind.KILL_BEFORE, Kind.KILL_AFTER):
            faulty_s3.inject(Fault(write, kind, lasting=kind is Kind.DENIED))
            ended = run_again(target)
            faults = faulty_s3.disarm()
            if kind is not Kind.DENIED:
                assert ended.code == KILLED, ended.output
            elif write == "release":  # all is done by then
                assert ended.code == 0, ended.output
                assert "the lease was not released" in ended.output
            else:
                assert ended.code == 1, ended.output
                assert "not allowed with these credentials" in ended.output
            verified(target)
            survived(faults, SAME_COMMAND)
    ended = run_again(target)
    assert ended.code == 0, ended.output
    found = verified(target)
    assert (found.accepted, found.pending, found.problems_total) == (6, 0, 0)
    assert set(target.times_made().values()) == {1}, "what was finished was not made again"
    counts = target.ledger.counts()
    assert counts.unet_rows == pytest.approx(3 * (SOURCE_ROWS + 2 * EDIT_ROWS))
    assert "\n6 images of 64 x 64 pixels" in target.folder.read("README.md").decode()


@pytest.mark.soak
def test_three_kills_in_mid_stream_lose_nothing_and_cost_two_blocks_each(
    faulty_s3: FaultyS3,
    picture: Callable[..., Image.Image],
    tiny_checkpoint: Path,
    fpe: FpeCommands,
    run_again: Callable[[JobOnS3], Ended],
) -> None:
    """The workers of a killed driver may finish what they are at; it is adopted or made again."""
    target = write_job(
        faulty_s3, "mid-stream", picture, tiny_checkpoint, sources=24, prompts=("a red cat",)
    )
    kills = (
        Fault("edited image", Kind.KILL_AFTER, nth=5, victim=lambda: fpe.pid),
        Fault("metadata", Kind.KILL_BEFORE, nth=5, victim=lambda: fpe.pid),
        Fault("metadata", Kind.KILL_AFTER, nth=5, victim=lambda: fpe.pid),
    )
    committed = []
    for kill in kills:
        faulty_s3.inject(kill)
        ended = run_again(target)
        assert ended.code == KILLED, ended.output
        faulty_s3.disarm()
        committed.append((target.ledger.done_ids(), len(faulty_s3.journal)))
        assert verified(target).pending
    ended = run_again(target)
    assert ended.code == 0, ended.output
    found = verified(target)
    assert (found.planned, found.accepted, found.problems_total) == (24, 24, 0)
    for edits, since in committed:
        made_since = target.times_made(since)
        assert not any(made_since[edit] for edit in edits), "what was committed was made again"
    again = [times - 1 for times in target.times_made().values() if times > 1]
    assert sum(again) <= len(kills) * 2, "blocks of one edit, one actor"
    survived(kills, SAME_COMMAND)

"""A run folder on a disk that is full: a small file system of its own, and no space left on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.storage.folder import Folder
from pipeline.verify.verify import Verification, verify_run
from tests.builders.finished_run import FinishedRun
from tests.builders.job_on_s3 import EDIT_ROWS, SOURCE_ROWS
from tests.faults.fpe_commands import Ended, FpeCommands
from tests.faults.injected import RETRIED, SAME_COMMAND, survived
from tests.servers.faulty_s3 import Fault, Kind, thing_of

NO_SPACE = "No space left on device"
_NOBODY = "127.0.0.1:9"
"""No Ray listens there."""
_MOUNT = 'mount -t tmpfs -o size=4m,nr_inodes=200 tmpfs "$0" && exec "$@"'


@dataclass
class SmallDisk:
    """A file system of 4 MB and 200 files that only our `fpe` has, seen from here through /proc."""

    fpe: FpeCommands
    mount: Path

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self.fpe.server_pid}/root{self.mount}")

    def leave_bytes(self, count: int) -> None:
        """Fills the disk up to so many bytes."""
        room = os.statvfs(self.seen)
        (self.seen / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - count))

    def leave_files(self, count: int) -> None:
        """Fills the disk up to so many files; a folder is one too."""
        fillers = self.seen / "fillers"
        shutil.rmtree(fillers, ignore_errors=True)
        fillers.mkdir()
        for number in range(os.statvfs(self.seen).f_favail - count):
            (fillers / str(number)).touch()

    def free(self) -> None:
        (self.seen / "filler").unlink()

    def written(self) -> set[Path]:
        """What is there of a run, but for what every run leaves anew: leases and fences."""
        paths = (self.seen / "run").rglob("*")
        return {path for path in paths if not {".lease", ".ledger"} & set(path.parts)}

    def run(self, command: str, job: Job) -> Ended:
        values = job.model_dump(mode="json", exclude_defaults=True)
        file = self.mount.parent / "job.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return self.fpe.run(command, str(file))

    def verified(self, job: Job) -> Verification:
        """What `fpe verify` finds; and that no file is there by half."""
        folder = self.seen / "run"
        for path in folder.rglob("*"):
            assert path.is_dir() or path.stat().st_size, f"{path} is empty"
            assert not path.name.startswith(".tmp-"), f"{path} was left behind"
        return verify_run(self.job_seen(job))

    def job_seen(self, job: Job) -> Job:
        return job.model_copy(update={"output": str(self.seen / "run")})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    mount = tmp_path / "disk"
    mount.mkdir()
    own = [shutil.which("unshare") or "", "--map-root-user", "--mount", "sh", "-c"]
    if not own[0] or subprocess.run([*own, _MOUNT, mount, "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount a file system of their own (unshare)")
    with FpeCommands(tmp_path, before=[*own, _MOUNT, str(mount)]) as fpe:
        yield SmallDisk(fpe, mount)


@pytest.fixture
def make_job(
    tmp_path: Path, picture: Callable[..., Image.Image], tiny_checkpoint: Path
) -> Callable[..., Job]:
    """make_job(sources, sections...): a job onto the small disk, all else elsewhere."""

    def make(sources: int, **sections: Any) -> Job:
        for number in range(sources):
            picture(number).save(tmp_path / f"{number}.png")
        rows = {
            "image": [f"{number}.png" for number in range(sources)],
            "target_prompt": [["a red cat", "a blue cat"]] * sources,
        }
        pq.write_table(pa.table(rows), tmp_path / "manifest.parquet")
        return Job.model_validate(
            {
                "manifest": str(tmp_path / "manifest.parquet"),
                "output": str(tmp_path / "disk" / "run"),
                "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
                "resources": {"ray_address": _NOBODY, "cpus_per_actor": 2},
                **sections,
            }
        )

    return make


@pytest.mark.endurance
def test_a_full_disk_stops_the_driver_and_the_same_command_gets_further(
    small_disk: SmallDisk,
    make_job: Callable[..., Job],
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> None:
    """What was written stays, so each run gets further, with room for one more file if it must.

    The last one gets as far as to ask for a Ray.
    """
    job = make_job(sources=2)
    left = FinishedRun(small_disk.job_seen(job), png(picture(9)))
    left.write_part("part-0", left.keys()[:2])
    met: list[str] = []
    files = 0
    for _ in range(60):
        small_disk.leave_files(files)
        before = small_disk.written()
        ended = small_disk.run("run", job)
        assert ended.code == 1, ended.output
        small_disk.verified(job)
        full = re.search(rf"error: (\S+): {NO_SPACE}", ended.output)
        if full is None:
            break
        met.append(thing_of(full[1]))
        files += small_disk.written() == before
    assert "nothing answers at resources.ray_address" in ended.output
    assert set(met) >= {"lease", "ledger", "work list", "plan", "card"}  # others fit by then
    found = small_disk.verified(job)
    assert (found.accepted, found.pending, found.problems_total) == (2, 2, 0)
    survived((Fault(thing, Kind.FULL_DISK, fired=1) for thing in met), SAME_COMMAND)


@pytest.mark.endurance
def test_edits_that_a_full_disk_did_not_take_are_made_by_a_retry(
    small_disk: SmallDisk, make_job: Callable[..., Job]
) -> None:
    """There is room for the driver's files, and for a part of a picture."""
    job = make_job(sources=1, edit={"size_px": 256})
    ended = small_disk.run("run", job)
    assert "nothing answers at resources.ray_address" in ended.output  # all is there but the edits
    ray = {"ray_address": small_disk.fpe.start_ray(cpus=3)}
    job = job.model_copy(update={"resources": job.resources.model_copy(update=ray)})
    run_folder = small_disk.job_seen(job).output

    small_disk.leave_bytes(60_000)
    ended = small_disk.run("run", job)
    assert ended.code == 0, ended.output
    small_disk.verified(job)
    messages = [row["message"] for row in _outcomes(run_folder)]
    assert len(messages) == 2
    assert all(NO_SPACE in text and "/edited/" in text for text in messages), messages

    small_disk.free()
    ended = small_disk.run("retry", job)
    assert ended.code == 0, ended.output
    found = small_disk.verified(job)
    assert (found.accepted, found.failed, found.problems_total) == (2, 0, 0)
    unet_rows = sum(row["unet_rows"] for row in _outcomes(run_folder)[2:])
    assert unet_rows == pytest.approx(SOURCE_ROWS + 2 * EDIT_ROWS)
    survived([Fault("edited image", Kind.FULL_DISK, fired=2)], RETRIED)


def _outcomes(run_folder: str) -> list[dict[str, Any]]:
    ledger = Ledger.open(Folder.open(run_folder))
    return [row for table in ledger.outcomes() for row in table.to_pylist()]

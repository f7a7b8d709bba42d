"""Runs over a manifest that has the images in it, in one row group: one task reads many blocks."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.run.driver import run_job
from pipeline.storage.folder import Folder

ROWS, ROWS_PER_BLOCK, BAD = 40, 5, 17


class Recorder:
    """Notes the tables of outcomes; kills the editing workers at the first one, if it is to."""

    def __init__(self, *, kills: bool = False) -> None:
        self.tables: list[pa.Table] = []
        self.killed: list[int] = []
        self._kills = kills

    def start(self, total: int, done: int) -> None:
        pass

    def advance(self, outcomes_table: pa.Table) -> None:
        self.tables.append(outcomes_table)
        if self._kills and not self.killed:
            processes = psutil.Process().children(recursive=True)  # Ray's are ours
            self.killed = [p.pid for p in processes if "RayEditActor" in " ".join(p.cmdline())]
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)

    def finish(self) -> None:
        pass


@pytest.fixture
def job(tmp_path: Path, picture: Callable[..., Image.Image]) -> Job:
    cells = []
    for number in range(ROWS):
        sink = io.BytesIO()
        picture(number).save(sink, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
        cells.append({"bytes": b"junk" if number == BAD else sink.getvalue(), "path": f"{number}"})
    table = pa.table({"image": cells, "target_prompt": [["x", "y"]] * ROWS})
    pq.write_table(table, tmp_path / "manifest.parquet")
    return Job.model_validate(
        {
            "manifest": str(tmp_path / "manifest.parquet"),
            "output": str(tmp_path / "run"),
            "editor": "none",
            "edit": {"size_px": 64},
            "resources": {"groups_per_block": ROWS_PER_BLOCK, "actors": 1},
        }
    )


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kills", [False, True], ids=["", "with a worker killed"])
def test_every_edit_is_made_and_blocks_come_one_by_one(
    job: Job, tmp_path: Path, *, kills: bool
) -> None:
    progress = Recorder(kills=kills)
    summary = run_job(job, progress=progress)
    assert bool(progress.killed) is kills
    counts = Ledger.open(Folder.open(job.output)).counts()
    assert (counts.accepted, counts.failed) == (2 * (ROWS - 1), 2)
    assert summary.edits_planned == 2 * ROWS
    assert len(progress.tables) >= ROWS // ROWS_PER_BLOCK
    assert all(len(table) <= 2 * ROWS_PER_BLOCK for table in progress.tables)
    (reason,) = {
        row["reason"]
        for t in progress.tables
        for row in t.to_pylist()
        if row["outcome"] == "failed"
    }
    assert reason == "decode_failed"
    for file in tmp_path.glob("run/.plan/**/*.parquet"):
        assert b"Exif" not in file.read_bytes()

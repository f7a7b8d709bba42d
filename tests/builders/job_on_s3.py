"""Jobs whose manifest, pictures and run folder lie on the tests' S3, and what killed runs left."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.job.job import Job
from pipeline.ledger.holder import Holder
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import EditKey
from pipeline.storage.folder import Folder
from pipeline.write.part import part_name
from tests.builders.finished_run import FinishedRun
from tests.servers.faulty_s3 import FaultyS3

SOURCE_ROWS, EDIT_ROWS = 7, 7
"""UNet rows that the tiny checkpoint takes as it recommends: once per source, and per edit. The
first step's unconditional row, which all edits of a source share, counts as the source's."""


@dataclass(frozen=True)
class JobOnS3:
    """A job behind a faulty store, and the same job seen past the faults."""

    job: Job
    store: FaultyS3

    @property
    def past_the_faults(self) -> Job:
        options = self.store.server.storage_options
        return self.job.model_copy(update={"storage_options": options})

    @property
    def folder(self) -> Folder:
        """The run folder, past the faults and without the server."""
        path = self.job.output.removeprefix(self.store.server.url(""))
        return Folder.open(str(self.store.server.file(path)))

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.folder)

    def keys(self) -> list[EditKey]:
        """All edits of the job, in order."""
        return FinishedRun(self.past_the_faults, b"").keys()

    @staticmethod
    def part_of(keys: Iterable[EditKey]) -> str:
        """The name of the part in which these edits are made together."""
        return part_name(key.edit_id for key in keys)

    def times_made(self, since: int = 0) -> dict[bytes, int]:
        """How often the picture of every edit was stored; more than once is made again.

        `since`: a length that the store's journal had before.
        """
        stored = self.store.stored("edited image", since)
        return {k.edit_id: sum(k.edit_id.hex() in name for name in stored) for k in self.keys()}


def write_job(
    store: FaultyS3,
    name: str,
    picture: Callable[..., Image.Image],
    checkpoint: Path,
    *,
    sources: int,
    prompts: tuple[str, ...] = ("a red cat", "a blue cat"),
    **resources: Any,
) -> JobOnS3:
    """A job of that many pictures, each with these prompts, one picture in a block, one actor."""
    folder = Folder.open(store.server.url(name), store.server.storage_options)
    for number in range(sources):
        sink = io.BytesIO()
        picture(number).save(sink, "PNG")
        folder.write_new(f"pictures/{number}.png", sink.getvalue())
    rows = {
        "image": [f"pictures/{number}.png" for number in range(sources)],
        "target_prompt": [list(prompts)] * sources,
    }
    manifest = io.BytesIO()
    pq.write_table(pa.table(rows), manifest)
    folder.write_new("manifest.parquet", manifest.getvalue())
    job = Job.model_validate(
        {
            "manifest": store.server.url(f"{name}/manifest.parquet"),
            "output": store.server.url(f"{name}/run"),
            "storage_options": store.storage_options,
            "model": {"checkpoint": str(checkpoint), "device": "cpu"},
            "resources": {"groups_per_block": 1, "cpus_per_actor": 2} | resources,
            "lease": {"heartbeat_s": 1.0},
        }
    )
    return JobOnS3(job, store)


def leave_what_a_killed_run_leaves(target: JobOnS3, image: bytes) -> int:
    """The first source's edits committed, the second's finished but not committed, a lease held.

    Its holder was on another machine, and its lease has expired however soon one looks. Returns how
    many edits that are.
    """
    run, keys = FinishedRun(target.past_the_faults, image), target.keys()
    first, second = ([key for key in keys if key.row == row] for row in (0, 1))
    run.commit(run.write_part("part-0", first))
    run.write_part("part-1", second)
    holder = Holder("elsewhere", 1, machine="", started="", since="", expiry_s=-1.0, nonce="0")
    run.folder.write_new(".lease/holder-00000001.json", holder.to_bytes())
    return len(first) + len(second)

"""How many messages a source, a picture and a part cost on S3: what docs/scale.md multiplies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

from pipeline.edit.actor import EditActor
from pipeline.edit.settings import EditSettings
from pipeline.job.job import Job
from pipeline.ledger.lease import take_lease
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import OUTCOME_SCHEMA, Outcome
from pipeline.plan.plan import make_plan
from pipeline.plan.work_list import cut_work, read_slice
from pipeline.read.decode import decode
from pipeline.run.worker_settings import decode_settings
from pipeline.storage.folder import Folder
from tests.servers.s3_server import S3Server

ROWS, EDITS_PER_ROW = 3, 2
OF_A_PART = {"head_object": 5, "list_objects_v2": 4, "put_object": 2, "get_object": 1}
"""In addition to one of each but GET for every picture: is it finished, whose is the lease, and are
its outcomes and its metadata there."""
OF_A_COMMIT = {"head_object": 3, "list_objects_v2": 2, "put_object": 1, "get_object": 1}


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what s3fs sends, by the method of the API."""
    counts: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **keys: Any) -> Any:
        counts[method] += 1
        return await call(self, method, *arguments, **keys)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return counts


def test_what_a_block_costs(
    s3_server: S3Server, picture: Callable[..., Image.Image], messages: Counter[str], tmp_path: Any
) -> None:
    for number in range(ROWS):
        picture(number).save(tmp_path / f"{number}.png")
        s3_server.put(f"{number}.png", (tmp_path / f"{number}.png").read_bytes())
    prompts = [[f"style {k}" for k in range(EDITS_PER_ROW)]] * ROWS
    images = [s3_server.url(f"{n}.png") for n in range(ROWS)]
    pq.write_table(pa.table({"image": images, "target_prompt": prompts}), tmp_path / "m.parquet")
    job = Job.model_validate(
        {
            "manifest": str(tmp_path / "m.parquet"),
            "output": s3_server.url("run"),
            "storage_options": s3_server.storage_options,
            "editor": "none",
            "edit": {"size_px": 64},
        }
    )
    folder = Folder.open(job.output, job.storage_options)
    plan = make_plan(job)
    lease = take_lease(folder, expiry_s=60.0)
    actor = EditActor(
        EditSettings(
            job.output,
            "none",
            plan.fingerprint,
            storage_options=job.storage_options,
            lease=lease,
            makes_edits=plan.makes_edits,
        )
    )
    (part,) = cut_work(folder, plan.work_files, ROWS, 1000)
    work = read_slice(folder, part)
    messages.clear()
    block = decode(work, decode_settings(job))
    assert messages == {"head_object": 2 * ROWS, "get_object": ROWS}
    messages.clear()
    outcomes = actor(block)
    assert set(outcomes["outcome"].to_pylist()) == {Outcome.ACCEPTED}
    pictures = ROWS + ROWS * EDITS_PER_ROW
    assert messages == {
        "head_object": pictures + OF_A_PART["head_object"],
        "list_objects_v2": pictures + OF_A_PART["list_objects_v2"],
        "put_object": pictures + OF_A_PART["put_object"],
        "get_object": OF_A_PART["get_object"],
    }
    messages.clear()
    Ledger(folder, lease).commit(outcomes.select(OUTCOME_SCHEMA.names))
    assert messages == OF_A_COMMIT

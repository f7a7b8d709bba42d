"""Hostile rows through the whole way but Ray: every edit has an outcome, every file its place."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import make_plan
from pipeline.run.dataset_card import CARD_FILE, dataset_card
from pipeline.storage.folder import Folder
from pipeline.verify.verify import Verification, verify_run
from pipeline.write.metadata import MetadataLayout
from tests.builders.finished_run import make_edits
from tests.builders.hostile_pictures import encoded, seeds
from tests.builders.hostile_texts import hostile_text
from tests.builders.mutations import mutated
from tests.faults.fuzz import cases

ROWS_PER_JOB, ROWS_PER_BLOCK = 270, 30
A_SAFE_NAME = re.compile(r"[A-Za-z0-9._-]{1,120}")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

pytestmark = pytest.mark.filterwarnings("ignore")  # decoders warn about damaged files


def hostile_row(number: int, chance: np.random.Generator, pictures: list[bytes]) -> dict[str, Any]:
    """A row that the manifest lets pass: what is wrong with it shows later or never."""
    data: bytes | None = pictures[int(chance.integers(len(pictures)))]
    path: str | None = hostile_text(chance)
    if chance.random() < 0.3:
        data = mutated(data or b"", chance)
    if chance.random() < 0.1:
        path = f"https://me:SECRET@host/{path}?sig=SECRET/SECRET.png"
    if chance.random() < 0.4:
        data, path = None, (path or "") + "x"
    return {
        "image": {"bytes": data, "path": path},
        "target_prompt": hostile_text(chance) + "x",
        "source_prompt": hostile_text(chance) if chance.random() < 0.5 else None,
        "id": f"{hostile_text(chance)}{number}" if chance.random() < 0.7 else None,
        "split": hostile_text(chance) if chance.random() < 0.5 else None,
        "note": hostile_text(chance),
        "a/b\n| c": [hostile_text(chance)],
        "cover_file_name": "/etc/passwd",
        "edit_id": {"x": hostile_text(chance), "y": None},
    }


def run_without_ray(job: Job) -> Verification:
    """What `run_job` does, block after block in this process."""
    make_edits(job, ROWS_PER_BLOCK)
    folder, plan = Folder.open(job.output), make_plan(job, write=False)
    layout = MetadataLayout(plan.label_names, plan.carried_schema, job.images.keep_source)
    card = dataset_card(plan, layout, Ledger.open(folder).counts(), job.model.checkpoint)
    folder.replace(CARD_FILE, card)
    return verify_run(job)


def test_every_row_has_an_outcome_and_no_file_lies_elsewhere(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "x").write_bytes(encoded("PNG"))
    monkeypatch.chdir(tmp_path / "allowed")
    pictures = list(seeds().values())
    rows = [hostile_row(number, chance, pictures) for number, chance in cases("manifest row")]
    accepted = failed = 0
    for number in range(math.ceil(len(rows) / ROWS_PER_JOB)):
        chunk = rows[number * ROWS_PER_JOB : (number + 1) * ROWS_PER_JOB]
        manifest = tmp_path / f"{number}.parquet"
        table = pa.table(
            {
                name: pa.array([row[name] for row in chunk], IMAGE if name == "image" else None)
                for name in chunk[0]
            }
        )
        pq.write_table(table, manifest)
        job = Job.model_validate(
            {
                "manifest": str(manifest),
                "output": str(tmp_path / f"run-{number}"),
                "model": {"checkpoint": str(tiny_checkpoint)},
                "edit": {"steps": 1, "guidance_scale": 1.0},
                "images": {"allowed_sources": [str(tmp_path / "allowed")], "max_pixels": 1_000_000},
            }
        )
        around = {path for path in tmp_path.rglob("*") if f"run-{number}" not in path.parts}
        found = run_without_ray(job)
        assert found.problems == ()
        assert (found.planned, found.pending, found.rejected) == (len(chunk), 0, 0)
        outside = {path for path in tmp_path.rglob("*") if f"run-{number}" not in path.parts}
        assert outside == around
        check_names(tmp_path / f"run-{number}")
        check_messages(Folder.open(job.output))
        check_that_it_loads(tmp_path / f"run-{number}", found.accepted)
        accepted, failed = accepted + found.accepted, failed + found.failed
    assert accepted
    assert failed


def check_names(run: Path) -> None:
    names = [path.name for path in run.rglob("*")]
    assert [name for name in names if not A_SAFE_NAME.fullmatch(name)] == []
    assert not any("SECRET" in name for name in names)


def check_messages(folder: Folder) -> None:
    tables = Ledger.open(folder).outcomes()
    messages = [text for table in tables for text in table["message"].to_pylist() if text]
    assert messages
    assert not any("SECRET" in text or "\x1b" in text or len(text) > 500 for text in messages)


def check_that_it_loads(run: Path, rows: int) -> None:
    loaded = datasets.load_dataset(str(run), split="train", cache_dir=str(run / ".cache"))
    assert len(loaded) == rows
    assert loaded[0]["edited"].size == loaded[0]["source"].size
    assert "manifest_cover_file_path" in loaded.column_names

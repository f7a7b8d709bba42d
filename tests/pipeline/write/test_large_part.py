"""A part of any size is read by us and by everybody else, and blocks keep parts small."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import datasets
import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fpe_core.judging.rules import RejectReason
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import ID_TYPE, MAX_MESSAGE_CHARS, EditKey, EditOutcome
from pipeline.ledger.parts import adopt_orphan_parts
from pipeline.report.facts import read_report
from pipeline.storage.folder import Folder
from pipeline.verify.verify import verify_run
from tests.builders import judged_run
from tests.builders.finished_run import make_edits
from tests.builders.outcome_rows import accepted, failed, table_of
from tests.builders.part_of_0_2 import metadata_of_0_2

SOURCES, PROMPTS = 5, 10_000


def job_of(folder: Path, image: bytes, sources: int, prompts: int, **values: object) -> Job:
    """Every source has as many prompts as one row may have."""
    (folder / "a.png").write_bytes(image)
    targets = [f"a cat, number {number}" for number in range(prompts)]
    columns = {
        "image": ["a.png"] * sources,
        "id": [str(number) for number in range(sources)],
        "target_prompt": [targets] * sources,
    }
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    manifest, output = str(folder / "manifest.parquet"), str(folder / "run")
    return Job.model_validate({"manifest": manifest, "output": output, **values})


def opened_everywhere(folder: Path, rows: int) -> None:
    """Every metadata file of the run, read by the libraries that people use."""
    files = sorted(folder.glob("part-*/metadata.parquet"))
    assert sum(pq.read_table(path).num_rows for path in files) == rows
    assert sum(len(pd.read_parquet(path)) for path in files) == rows
    counted = duckdb.sql(f"select count(*) from '{folder}/part-*/metadata.parquet'").fetchall()
    assert counted == [(rows,)]
    cache = str(folder.with_name("cache"))
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=cache)
    assert len(loaded) == rows


@pytest.mark.endurance
def test_a_part_of_fifty_thousand_judged_outcomes_opens(
    tmp_path: Path, tiny_checkpoint: Path, png: Callable[[Image.Image], bytes]
) -> None:
    image = png(Image.new("RGB", (8, 8)))
    judge = {"edit_type": "colour", "rules": judged_run.RULES}
    model = {"checkpoint": str(tiny_checkpoint)}
    job = job_of(tmp_path, image, SOURCES, PROMPTS, judge=judge, model=model)

    def judgement(number: int, key: EditKey) -> EditOutcome:
        if number % 10 == 0:
            return judged_run.failed(key)
        if number % 10 == 1:
            dropped = judged_run.rejected(number, key, RejectReason.NO_CHANGE, changed_share=0.0)
            return key.rejected(
                RejectReason.NO_CHANGE, unet_rows=1.0, seconds=1.0, scores=dropped.scores
            )
        return judged_run.accepted(number, key, changed_share=0.5, text_score=0.25)

    outcomes = judged_run.write_run(job, image, judgement)
    assert len(outcomes) == SOURCES * PROMPTS
    run = Path(job.output)
    folder = Folder.open(job.output)
    for path in run.glob(".ledger/*"):
        path.unlink()  # as after a kill before the commit
    ledger = Ledger.open(folder)
    assert adopt_orphan_parts(folder, ledger) == len(outcomes)
    assert ledger.counts().accepted == len(outcomes) * 8 // 10
    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.accepted, found.failed) == (len(outcomes) * 8 // 10, len(outcomes) // 10)
    assert read_report(folder).counts.accepted == found.accepted
    assert (run / "part-a/metadata.parquet").stat().st_size < 100 * len(outcomes)
    opened_everywhere(run, found.accepted)


@pytest.mark.endurance
def test_sources_with_ten_thousand_prompts_each_are_written_in_parts_that_open(
    tmp_path: Path, png: Callable[[Image.Image], bytes]
) -> None:
    edit = {"size_px": 64}
    image = png(Image.new("RGB", (64, 64)))
    job = job_of(tmp_path, image, 2, PROMPTS, editor="none", edit=edit)
    make_edits(job, groups_per_block=64, edits_per_block=2048)
    run = Path(job.output)
    assert len(list(run.glob("part-*"))) == 2
    assert adopt_orphan_parts(Folder.open(job.output), Ledger.open(Folder.open(job.output))) == 0
    found = verify_run(job)
    assert found.ok, found.problems
    assert found.accepted == 2 * PROMPTS
    opened_everywhere(run, found.accepted)


@pytest.mark.endurance
def test_a_large_part_of_0_2_that_pyarrow_refuses_is_adopted(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    message = "x" * MAX_MESSAGE_CHARS
    some = table_of(accepted(1, "part-a"), *(failed(n) for n in range(2, 1000)))
    messages = pa.array([message] * len(some), pa.string())
    place = some.column_names.index("message")
    many = [
        some.set_column(place, some.schema.field(place), messages).set_column(
            0, some.schema.field(0), ids_from(start, len(some))
        )
        for start in range(0, 150_000, len(some))
    ]
    outcomes = pa.concat_tables(many)
    data = metadata_of_0_2(pa.table({"edit_id": ["a"]}), outcomes)
    with pytest.raises(OSError, match="Exceeded size limit"):
        pq.read_schema(io.BytesIO(data))
    folder.write_new("part-a/metadata.parquet", data)
    assert adopt_orphan_parts(folder, Ledger.open(folder)) == len(outcomes)


def ids_from(start: int, count: int) -> pa.Array:
    return pa.array([number.to_bytes(16) for number in range(start, start + count)], ID_TYPE)

"""A run folder as an object: its tables agree with the ledger, on every kind of store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pipeline import open_run
from pipeline.errors import JobError, StorageError
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import outcomes_table
from pipeline.plan.plan import make_plan
from pipeline.report.opened_run import OpenedRun
from tests.builders.finished_run import METADATA_SCHEMA, FinishedRun
from tests.builders.judged_run import labelled_job
from tests.servers.stores import Store

PartOf = Callable[..., None]


@pytest.fixture
def finished(
    store: Store,
    tiny_checkpoint: Path,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> FinishedRun:
    """An empty run of a job with six edits in two colours."""
    return FinishedRun(labelled_job(store, str(tiny_checkpoint)), png(picture()))


def opened(finished: FinishedRun) -> OpenedRun:
    return open_run(finished.job.output, finished.job.storage_options)


def test_a_folder_that_is_no_run_is_told(store: Store) -> None:
    store.put("elsewhere/metadata.parquet", b"x")
    with pytest.raises(StorageError, match=r"there is no run in .*elsewhere: it has neither"):
        open_run(store.url("elsewhere"), store.storage_options)


def test_a_run_that_has_committed_nothing_has_empty_tables(finished: FinishedRun) -> None:
    make_plan(finished.job)
    run = opened(finished)
    assert run.outcomes().num_rows == 0
    assert {"outcome", "id", "label:colour"} <= set(run.outcomes().column_names)
    assert (run.edits().num_rows, run.rejected().num_rows) == (0, 0)
    finished.folder.write_new(".metadata-schema", METADATA_SCHEMA.serialize().to_pybytes())
    assert run.edits().schema == METADATA_SCHEMA
    assert (run.statistics, run.job) == ({}, None)
    assert run.status().pending == 6


def test_tables_have_what_stands_in_the_ledger(finished: FinishedRun) -> None:
    make_plan(finished.job)
    keys = finished.keys()
    failed = outcomes_table([key.failed("decode_failed", "broken") for key in keys[1:3]])
    first = finished.write_part("part-a", keys[:1])
    finished.commit(first, failed)
    ledger = Ledger.open(finished.folder)
    ledger.reopen(frozenset({keys[1].edit_id}))
    ledger.commit(finished.write_part("part-b", keys[1:2]))  # a retry
    finished.write_part("part-c", keys[4:])  # finished, and not committed yet
    run = opened(finished)

    outcomes = {row["edit_id"]: row for row in run.outcomes().to_pylist()}
    assert {key: row["outcome"] for key, row in outcomes.items()} == {
        keys[0].edit_id.hex(): "accepted",
        keys[1].edit_id.hex(): "accepted",
        keys[2].edit_id.hex(): "failed",
    }
    assert outcomes[keys[2].edit_id.hex()]["reason"] == "decode_failed"
    assert outcomes[keys[0].edit_id.hex()]["label:colour"] == "red"
    assert outcomes[keys[0].edit_id.hex()]["source_prompt"] == "a cat"

    edits = run.edits().to_pylist()
    assert [row["edit_id"] for row in edits] == [key.edit_id.hex() for key in keys[:2]]
    assert run.rejected().num_rows == 0
    for row in edits:
        assert row["edited_file_name"] == outcomes[row["edit_id"]]["edited_file_name"]
        assert run.picture_path(row) == f"{run.url}/{row['edited_file_name']}"
        assert run.picture_path(outcomes[row["edit_id"]]) == run.picture_path(row)
        assert finished.folder.exists(row["source_file_name"])
        assert run.source_path(row).endswith(row["source_file_name"])
        assert run.picture(row).mode == "RGB"
    with pytest.raises(ValueError, match="has no edited_file_name"):
        run.picture_path(outcomes[keys[2].edit_id.hex()])


def test_a_part_whose_metadata_is_damaged_or_gone_is_named(finished: FinishedRun) -> None:
    make_plan(finished.job)
    finished.commit(finished.write_part("part-a", finished.keys()))
    finished.folder.replace("part-a/metadata.parquet", b"no parquet")
    with pytest.raises(StorageError, match=r"part-a/metadata\.parquet is damaged"):
        opened(finished).edits()
    finished.folder.fs.rm(finished.folder.path_of("part-a/metadata.parquet"))
    with pytest.raises(StorageError, match=r"part-a/metadata\.parquet"):
        opened(finished).edits()


def test_statistics_and_job_are_read_or_their_damage_is_named(finished: FinishedRun) -> None:
    make_plan(finished.job)
    run = opened(finished)
    finished.folder.replace("stats.json", b'{"total": {"edits": 6}}')
    assert run.statistics == {"total": {"edits": 6}}
    finished.folder.replace("stats.json", b"[")
    with pytest.raises(StorageError, match=r"stats\.json is damaged"):
        _ = run.statistics
    values: dict[str, Any] = finished.job.model_dump(mode="json") | {"output": "/moved/since"}
    finished.folder.replace("config.yaml", yaml.safe_dump(values).encode())
    assert run.job == Job.model_validate(values | {"output": run.url})
    finished.folder.replace("config.yaml", b"manifest: m\noutput: o\nedit: {steps: 0}\n")
    with pytest.raises(JobError, match=r"config\.yaml:3: edit\.steps"):
        _ = run.job

"""Rejected edits that are kept: a separate table, outside the dataset, that survives any crash."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.commands.judgements import read_judgements
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.parts import adopt_orphan_parts
from pipeline.plan.plan import make_plan
from pipeline.run.dataset_card import CARD_FILE, dataset_card
from pipeline.run.worker_settings import judge_settings
from pipeline.storage.folder import Folder
from pipeline.verify.verify import verify_run
from pipeline.write.metadata import MetadataLayout
from pipeline.write.provenance import read_provenance
from tests.builders.finished_run import make_edits

NEVER = {"score": "changed_share", "at_least": 2.0, "reason": "no_change"}
COLOURS_ONLY = {"clip": None, "structure": None, "rules": {"colour": [NEVER]}}

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(
    tmp_path: Path,
    tiny_checkpoint: Path,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> MakeJob:
    """make_job(types): a source per type, judged; edits of colour are rejected. Already run."""

    def make(*types: str, **judge: Any) -> Job:
        columns = {
            "image": [png(picture(number)) for number in range(len(types))],
            "target_prompt": [["a red cat", "a blue dog"]] * len(types),
            "edit_type": pa.array(types, pa.string()),
        }
        pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
        job = Job.model_validate(
            {
                "manifest": str(tmp_path / "manifest.parquet"),
                "output": str(tmp_path / "run"),
                "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
                "edit": {"steps": 1},
                "judge": {**COLOURS_ONLY, **judge},
            }
        )
        assert job.judge is not None
        make_edits(job, groups_per_block=2, judge=judge_settings(job.judge))
        ledger = Ledger.open(Folder.open(job.output))
        plan = make_plan(job, ledger, write=False)
        layout = MetadataLayout((), plan.carried_schema, judged=True)
        card = dataset_card(plan, layout, ledger.counts(), "tiny", keeps_rejected=True)
        Path(job.output, CARD_FILE).write_bytes(card)
        return job

    return make


def load(job: Job, *config: str) -> Any:
    cache = Path(job.output).with_name("cache")
    shutil.rmtree(cache, ignore_errors=True)
    return datasets.load_dataset(job.output, *config, split="train", cache_dir=str(cache))


def files_of(job: Job) -> dict[str, bytes]:
    root = Path(job.output)
    paths = [p for p in root.rglob("*") if p.is_file() and ".ledger" not in p.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def forget(job: Job, *rest: str) -> None:
    """As after a kill before the ledger was written, and what is in `rest` neither."""
    shutil.rmtree(Path(job.output, ".ledger"))
    for pattern in rest:
        for path in Path(job.output).glob(pattern):
            path.unlink()


def test_accepted_and_rejected_edits_are_two_datasets(make_job: MakeJob) -> None:
    job = make_job("colour", "style")
    verification = verify_run(job)
    assert verification.ok, verification.problems
    assert (verification.accepted, verification.rejected) == (2, 2)
    accepted, rejected = load(job), load(job, "rejected")
    for data, edit_type, verdict, reason in (
        (accepted, "style", "accepted", None),
        (rejected, "colour", "rejected", "no_change"),
    ):
        assert data["edit_type"] == [edit_type] * 2
        assert data["verdict"] == [verdict] * 2
        assert data["reject_reason"] == [reason] * 2
        assert sorted(data["target_prompt"]) == ["a blue dog", "a red cat"]
        assert all(row["edited"].size == row["source"].size for row in data)
        assert all(score is not None for score in data["changed_share"])
    assert accepted.features == rejected.features


def test_rejected_files_say_how_they_were_made(make_job: MakeJob) -> None:
    job = make_job("colour")
    files = [p for p in Path(job.output).glob("rejected/part-*/*.png") if p.is_file()]
    said = [read_provenance(path.read_bytes()) for path in files]
    assert len(said) == 2
    for path, each in zip(files, said, strict=True):
        assert each["edit_id"] in path.name
        assert each["digital_source_type"].endswith("/compositeWithTrainedAlgorithmicMedia")


def test_a_run_that_accepts_nothing_is_no_dataset_of_its_sources(make_job: MakeJob) -> None:
    job = make_job("colour", "colour", "colour")
    assert not [name for name in files_of(job) if name.startswith("part-")]
    with pytest.raises(ValueError, match="no data"):
        load(job)
    assert len(load(job, "rejected")) == 6
    verification = verify_run(job)
    assert verification.ok, verification.problems
    assert verification.rejected == 6


def test_dropped_edits_leave_no_sources_behind(make_job: MakeJob) -> None:
    job = make_job("colour", "style", rejected="drop")
    names = files_of(job)
    assert not [name for name in names if name.startswith("rejected")]
    assert len([name for name in names if "/source/" in name]) == 1
    assert verify_run(job).ok


@pytest.mark.parametrize(
    ("types", "lost"),
    [
        (("colour", "style"), ["rejected/part-*/metadata.parquet"]),
        (("colour", "style"), []),
        (("colour", "colour"), []),
    ],
)
def test_a_kill_before_the_commit_loses_no_verdict(
    make_job: MakeJob, types: tuple[str, ...], lost: list[str]
) -> None:
    job = make_job(*types)
    before, outcomes = files_of(job), list(Ledger.open(Folder.open(job.output)).outcomes())
    forget(job, *lost)
    folder = Folder.open(job.output)
    assert adopt_orphan_parts(folder, Ledger.open(folder)) == 4
    assert files_of(job) == before
    columns = ["edit_id", "outcome", "part", "reason", "edited_file_name"]
    (again,) = Ledger.open(folder).outcomes()
    assert again.select(columns).equals(outcomes[0].select(columns))
    assert make_plan(job, write=False).edits_pending == 0
    assert verify_run(job).ok
    assert adopt_orphan_parts(folder, Ledger.open(folder)) == 0


def test_a_missing_table_of_rejected_edits_is_found(make_job: MakeJob) -> None:
    job = make_job("colour", "style")
    for path in Path(job.output).glob("rejected/part-*/metadata.parquet"):
        path.unlink()
    found = verify_run(job)
    assert found.problems_total == 2
    assert "is rejected in the ledger and in no part's metadata" in found.problems[0]


def test_the_metadata_are_a_table_to_calibrate_by(make_job: MakeJob, tmp_path: Path) -> None:
    """As the README does it; edits that nobody has judged are left out."""
    job = make_job("colour", "style")
    files = sorted(Path(job.output).glob("**/part-*/metadata.parquet"))
    table = pd.concat(pd.read_parquet(file).assign(folder=file.parent) for file in files)
    assert sorted(table["verdict"]) == ["accepted", "accepted", "rejected", "rejected"]
    assert all((row.folder / row.edited_file_name).is_file() for row in table.itertuples())
    table["good"] = [True, None, False, None]
    table.to_csv(tmp_path / "judged.csv", index=False)
    judged = read_judgements(tmp_path / "judged.csv")
    assert {name: len(edits) for name, edits in judged.items()} == {"style": 1, "colour": 1}

"""Labels and types that a manifest gives to each of its target prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fpe_core import EditParameters
from pipeline.errors import JobError, ManifestError
from pipeline.job.job import Job
from pipeline.judge.judge import JudgeSettings
from pipeline.manifest.files import Manifest
from pipeline.manifest.rows import Problems, RowReader, WantedEdit
from pipeline.plan.plan import make_plan
from pipeline.plan.resolved_job import resolve_job
from pipeline.verify.verify import verify_run
from tests.builders.finished_run import make_edits

PROMPTS = ["a blue car", "a red van"]
LABELS = [{"colour": "blue"}, {"shape": "van"}]
UNJUDGED = {"clip": None, "structure": None, "scores": ("psnr_db",)}


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., str]:
    """manifest(columns...): of a red car, or what is given instead."""

    def write(**columns: Any) -> str:
        values = {
            "image": ["a.png"],
            "target_prompt": [PROMPTS],
            "target_labels": [LABELS],
            "colour": ["red"],
            "shape": ["car"],
        } | columns
        pq.write_table(
            pa.table({k: v for k, v in values.items() if v is not None}), tmp_path / "m.parquet"
        )
        return str(tmp_path / "m.parquet")

    return write


@pytest.fixture
def job_of(tmp_path: Path, tiny_checkpoint: Path) -> Callable[..., Job]:
    def make(manifest: str, **sections: Any) -> Job:
        values = {
            "manifest": manifest,
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
            "edit": {"steps": 1},
        }
        return Job.model_validate(values | sections)

    return make


def edits_of(url: str) -> tuple[WantedEdit, ...]:
    """Of the manifest's only row."""
    opened, problems = Manifest.open(url), Problems()
    reader = RowReader(opened, EditParameters(), None)
    rows = [row for batch in opened.batches() for row in reader.read(batch, problems)]
    problems.raise_if_any()
    (row,) = rows
    return row.edits


def test_what_an_edit_does_not_change_stays_the_rows_own(manifest: Callable[..., str]) -> None:
    url = manifest(edit_type=[["colour", "shape"]])
    assert [item.name for item in Manifest.open(url).labels] == ["colour", "shape"]
    assert edits_of(url) == (
        WantedEdit("a blue car", ("blue", "car"), "colour"),
        WantedEdit("a red van", ("red", "van"), "shape"),
    )


def test_one_prompt_may_have_its_labels_without_a_list(manifest: Callable[..., str]) -> None:
    url = manifest(target_prompt=["a blue car"], target_labels=[{"colour": "blue", "doors": 3}])
    assert edits_of(url) == (WantedEdit("a blue car", ("blue", "3")),)
    alone = manifest(target_prompt=["a car"], target_labels=[[{"tint": None}]])
    assert edits_of(alone) == (WantedEdit("a car", (None,)),), "no such column, no value"


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"target_labels": [[{"colour": "blue"}]]}, "has 1 entries for 2 target prompts"),
        ({"target_labels": [[{"colour": "blue"}, None]]}, "null for target prompt number 1"),
        (
            {"target_labels": pa.array([None], pa.list_(pa.struct([("a", pa.string())])))},
            "has 1 entries for 2 target prompts",
        ),
        (
            {"target_labels": [[{"colour": " "}, {"colour": "red"}]]},
            "target_labels.colour is empty",
        ),
        ({"edit_type": [["colour"]]}, "edit_type has 1 entries for 2 target prompts"),
    ],
)
def test_a_row_that_does_not_fit_its_prompts(
    manifest: Callable[..., str], columns: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ManifestError) as error:
        edits_of(manifest(**columns))
    assert problem in str(error.value)
    assert "row 0" in str(error.value)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["blue"], "must be a struct of text or numbers"),
        ([[{"colour": ["blue"]}, {"colour": []}]], "must be a struct of text or numbers"),
        ([[{"a b": "x"}, {"a b": "y"}]], "is not a valid name"),
    ],
)
def test_a_column_that_cannot_be_labels(
    manifest: Callable[..., str], labels: Any, problem: str
) -> None:
    with pytest.raises(ManifestError, match=problem):
        Manifest.open(manifest(target_labels=labels))


def test_names_that_are_taken(manifest: Callable[..., str], job_of: Callable[..., Job]) -> None:
    for labels, problem in (
        ([[{"seed": 1}, {"seed": 2}]], "target_labels.seed: this name has a meaning"),
        (None, "target_labels.colour: the manifest's column colour would be carried as"),
    ):
        url = manifest(target_labels=labels or [LABELS], source_colour=["pink"])
        with pytest.raises(JobError, match=problem):
            make_plan(job_of(url), write=False)


def test_a_job_with_prompts_leaves_them_alone(
    manifest: Callable[..., str], job_of: Callable[..., Job]
) -> None:
    url = manifest(edit_type=[["colour", "shape"]])
    prompts = {"target": "a {colour} {shape}", "labels": {"colour": ["green"]}}
    resolved = resolve_job(job_of(url, prompts=prompts))
    assert resolved.label_names == ("colour",)
    assert {"target_prompt", "target_labels", "edit_type"} <= set(resolved.carried_schema.names)
    with pytest.raises(JobError, match="say here what type of edits"):
        resolve_job(job_of(url, prompts=prompts, judge=UNJUDGED))
    resolve_job(job_of(url, prompts=prompts, judge={**UNJUDGED, "edit_type": "colour"}))


@pytest.mark.parametrize(
    ("own", "new", "becomes"),
    [
        (pa.array([2], pa.int16()), ["3", "10"], pa.int16()),
        (pa.array([2], pa.int16()), ["3", "many"], None),
        (pa.array([2], pa.int16()), ["3", "010"], None),
        (pa.array(["2"]), ["3", "10"], None),
    ],
)
def test_whole_numbers_stay_whole_numbers(
    manifest: Callable[..., str],
    job_of: Callable[..., Job],
    own: pa.Array,
    new: list[str],
    becomes: pa.DataType | None,
) -> None:
    """Else a label is text, in which no value is lost."""
    url = manifest(doors=own)
    prompts = {"target": "a car with {doors} doors", "labels": {"doors": new}}
    types = resolve_job(job_of(url, prompts=prompts)).label_types
    assert types == ({} if becomes is None else {"doors": becomes})


def test_the_metadata_have_the_new_values_beside_the_old(
    manifest: Callable[..., str],
    job_of: Callable[..., Job],
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> None:
    url = manifest(
        image=[png(picture(0))],
        target_labels=[[{"colour": "blue"}, {"doors": 5}]],
        doors=[3],
        edit_type=[["colour", None]],
    )
    job = job_of(url)
    make_edits(job, groups_per_block=1)
    (file,) = Path(job.output).glob("part-*/metadata.parquet")
    rows = pq.read_table(file).to_pylist()
    names = ("colour", "source_colour", "doors", "source_doors", "edit_type")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("blue", "red", 3, 3, "colour"),
        ("red", "red", 5, 3, None),
    ]
    assert verify_run(job).ok


def test_every_edit_of_a_row_is_judged_by_its_own_type(
    manifest: Callable[..., str],
    job_of: Callable[..., Job],
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> None:
    never = {"score": "psnr_db", "at_least": 1000.0, "reason": "no_change"}
    url = manifest(image=[png(picture(0))], edit_type=[["colour", "shape"]])
    job = job_of(url, judge={**UNJUDGED, "rules": {"colour": [never]}})
    assert job.judge is not None
    settings = JudgeSettings(
        clip=None, structure=None, scores=("psnr_db",), rules=job.judge.to_rules()
    )
    make_edits(job, groups_per_block=1, judge=settings)
    for pattern, edit_type in (("part-*", "shape"), ("rejected/part-*", "colour")):
        (file,) = Path(job.output).glob(f"{pattern}/metadata.parquet")
        assert pq.read_table(file)["edit_type"].to_pylist() == [edit_type]

"""Prompts of what is inside a mask and outside of it: columns, plans, edits, records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.cost.measure
from pipeline.cost.price import price
from pipeline.cost.probe import ProbeStore
from pipeline.errors import JobError, ManifestError
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import make_plan
from pipeline.plan.resolved_job import Repeats, resolve_job
from pipeline.storage.folder import Folder
from pipeline.verify.recompute import recompute_sample
from pipeline.write.provenance import read_provenance
from tests.builders.finished_run import make_edits
from tests.pipeline.edit.conftest import PROMPTS
from tests.pipeline.edit.test_editors import metadata

MakeJob = Callable[..., Job]
EDITOR = {"name": "shape_guided", "cross_scale": 2.0}
STEPS = 4


@pytest.fixture
def columns(columns: dict[str, Any]) -> dict[str, Any]:
    """Without words, and with a mask in both rows."""
    mask = columns["edit_mask"][0]
    return columns | {"edit_mask": pa.array([mask, mask]), "blend_words": [None, None]}


@pytest.mark.parametrize(
    ("more", "inversions"),
    [
        ({}, 2),
        ({"source_inside": ["a cup", None]}, 2),
        ({"source_inside": [["a cup", "a red cup"], ["a cup", "cup"]]}, 4),
        ({"target_inside": [["a blue mug", ""], None], "target_outside": ["a table", None]}, 2),
        ({"blend_words": [[["cup", "blue cup"], ["red cup", "green cup"]], None]}, 3),
    ],
)
def test_rows_are_those_of_the_plan(
    make_job: MakeJob, columns: dict[str, Any], more: dict[str, Any], inversions: int
) -> None:
    """T for each inversion that the source's prompts tell apart, and 2 T for each edit."""
    job = make_job(columns | more, EDITOR)
    plan = make_plan(job, write=False)
    make_edits(job, groups_per_block=2)
    counts = Ledger.open(Folder.open(job.output)).counts()
    assert (counts.accepted, counts.total) == (4, 4)
    assert counts.unet_rows == plan.unet_rows == STEPS * inversions + 2 * STEPS * 4
    (shape,) = {shape.retry_rows for shape in plan.shapes} if len(plan.shapes) == 1 else (None,)
    assert shape is None or shape == plan.unet_rows // 2, "a retry inverts again"


def test_it_has_a_price_with_all_of_its_rows(
    make_job: MakeJob, columns: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps and guidance change it as they change the rows."""
    monkeypatch.setattr(pipeline.cost.measure, "_MOST_ROUNDS", 1)  # times do not matter here
    job = make_job(columns | {"source_inside": [["a cup", "cup"]] * 2}, EDITOR)
    ledger = Ledger.open(Folder.open(job.output))
    plan = make_plan(job, ledger, write=False)
    found = price(job, plan, ledger, ProbeStore(tmp_path / "probes.json"), seconds=1e9)
    assert found.estimate.unet_rows == plan.unet_rows == 4 * STEPS + 4 * 2 * STEPS
    assert found.estimate.device_s > 0
    effects = {effect.key: effect.estimate.unet_rows for effect in found.key_effects}
    assert effects["edit.guidance_scale"] == 4 * STEPS + 4 * STEPS
    assert effects["edit.steps"] < plan.unet_rows


def test_they_are_recorded_and_made_again(make_job: MakeJob, columns: dict[str, Any]) -> None:
    more = {
        "source_outside": ["a table", None],
        "target_inside": [["a blue mug", None], None],
    }
    job = make_job(columns | more, EDITOR)
    make_plan(job, write=False)
    make_edits(job, groups_per_block=1)
    found = {}
    for row in metadata(job):
        (file,) = Path(job.output).glob(f"part-*/{row['edited_file_name']}")
        written = read_provenance(file.read_bytes())
        assert json.loads(row["editor_parameters"]) == {"cross_scale": 2.0}
        place = row["source_outside"], row["target_prompt"]
        found[place] = written.get("region_prompts")
    nothing = dict.fromkeys(("source_inside", "target_inside", "target_outside"), "")
    assert found == {
        ("a table", PROMPTS[0]): nothing
        | {"source_outside": "a table", "target_inside": "a blue mug"},
        ("a table", PROMPTS[1]): nothing | {"source_outside": "a table"},
        (None, PROMPTS[0]): None,
        (None, PROMPTS[1]): None,
    }
    again = recompute_sample(job, 4)
    assert again.ok, again.comparisons


def test_ids_tell_them_apart(make_job: MakeJob, columns: dict[str, Any]) -> None:
    def ids(editor: Any, **more: Any) -> list[bytes]:
        return [*resolve_job(make_job(columns | more, editor)).edit_ids(Repeats())]

    plain = ids(EDITOR)
    assert plain == ids(EDITOR, source_inside=[None, ""])
    one, other = (
        ids(EDITOR, **{name: ["cup", None]}) for name in ("source_inside", "target_inside")
    )
    assert len({*plain, *one, *other}) == 4 + 2 + 2
    assert ids("diffedit") == ids("diffedit", source_inside=["cup", None])


def test_prompts_of_the_source_s_regions_stand_for_its_prompt(
    make_job: MakeJob, columns: dict[str, Any]
) -> None:
    columns["source_prompt"] = [None, None]
    more = {"source_inside": ["a cup", "a cup"], "source_outside": ["a table", None]}
    plan = make_plan(make_job(columns | more, EDITOR), write=False)
    assert plan.edits_not_applicable == 2
    assert plan.first_not_applicable == "row 1: no source prompt"


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([["a", "b", "c"], None], ManifestError, "target_inside has 3 entries for 2 target"),
        ([1, 2], JobError, "column target_inside is read for the editor shape_guided and must be"),
    ],
)
def test_a_column_that_is_wrong_is_named(
    make_job: MakeJob,
    columns: dict[str, Any],
    value: Any,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        make_plan(make_job(columns | {"target_inside": value}, EDITOR), write=False)


def test_other_editors_carry_them(make_job: MakeJob, columns: dict[str, Any]) -> None:
    job = make_job(columns | {"target_inside": [1, 2]}, "ddim")
    make_plan(job, write=False)
    make_edits(job, groups_per_block=2)
    assert {row["target_inside"] for row in metadata(job)} == {1, 2}


def test_lists_as_json_are_read(make_job: MakeJob, columns: dict[str, Any], tmp_path: Path) -> None:
    """As fastparquet writes them."""
    expected = resolve_job(make_job(columns | {"target_inside": [["cup", "mug"], None]}, EDITOR))
    expected_ids = [*expected.edit_ids(Repeats())]
    job = make_job(columns, EDITOR)
    file = tmp_path / "manifest.parquet"
    texts = pa.array(['["cup", "mug"]', None], pa.json_(pa.string()))
    pq.write_table(pq.read_table(file).append_column("target_inside", texts), file)
    assert [*resolve_job(job).edit_ids(Repeats())] == expected_ids

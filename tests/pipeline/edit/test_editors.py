"""Every editing method under the pipeline: planned, made, verified, and made again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipeline.cost.measure
from fpe_core import method_names
from pipeline.cost.price import price
from pipeline.cost.probe import ProbeStore
from pipeline.errors import JobError, ManifestError
from pipeline.job.editor import method_of
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger, LedgerCounts
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.resolved_job import Repeats, resolve_job
from pipeline.report.facts import read_report
from pipeline.run.dataset_card import dataset_card
from pipeline.run.folder import metadata_layout
from pipeline.storage.folder import Folder
from pipeline.verify.recompute import ComparisonVerdict, recompute_sample
from pipeline.verify.verify import verify_run
from pipeline.write.provenance import read_provenance
from tests.builders.finished_run import make_edits
from tests.builders.tiny_checkpoint import SIZE_PX
from tests.pipeline.edit.conftest import PROMPTS

MakeJob = Callable[..., Job]
READS_INSTRUCTIONS = "instruct_pix2pix"
"""The one with a checkpoint of its own: tests/pipeline/run/test_editor_run.py."""
NEED_MASKS = ("blended", "shape_guided")


def run(job: Job) -> tuple[Plan, LedgerCounts]:
    """The plan, and what was made of it without Ray."""
    plan = make_plan(job, write=False)
    make_edits(job, groups_per_block=2)
    return plan, Ledger.open(Folder.open(job.output)).counts()


def metadata(job: Job) -> list[dict[str, Any]]:
    files = sorted(Path(job.output).glob("part-*/metadata.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize(
    "editor",
    [
        *sorted({*method_names()} - {"p2p", READS_INSTRUCTIONS}),
        {"name": "p2p", "cross_fraction": 0.75},
    ],
)
def test_a_method_is_planned_made_verified_and_made_again(
    make_job: MakeJob, columns: dict[str, Any], editor: Any
) -> None:
    """With rows exactly as planned, and named in metadata and provenance."""
    job = make_job(columns, editor)
    plan, counts = run(job)
    name = editor if isinstance(editor, str) else editor["name"]
    lacking = 2 if name in NEED_MASKS else 0  # the second row has no mask
    assert (plan.edits_total, plan.edits_not_applicable) == (4, lacking)
    assert (counts.accepted, counts.failed, counts.not_applicable) == (4 - lacking, 0, lacking)
    assert counts.unet_rows == plan.unet_rows
    found = verify_run(job)
    assert (found.ok, found.accepted, found.not_applicable) == (True, 4 - lacking, lacking)
    assert found.pending == 0
    if name != "fpe":
        check_names(job, name)
    again = recompute_sample(job, 2)
    assert again.ok, again.comparisons
    assert not again.of(ComparisonVerdict.NOT_MADE)
    counted = read_report(Folder.open(job.output)).counts
    assert (counted.accepted, counted.not_applicable) == (4 - lacking, lacking)
    assert counted.accepted_share == 1.0


def check_names(job: Job, name: str) -> None:
    """Metadata and provenance name the method and its parameters."""
    parameters = json.loads(json.dumps(method_of(job.editor).to_dict()))
    for row in metadata(job):
        assert row["editor"] == name
        assert {"name": name, **json.loads(row["editor_parameters"])} == parameters
        assert "layers" not in row
        (file,) = Path(job.output).glob(f"part-*/{row['edited_file_name']}")
        written = read_provenance(file.read_bytes())
        assert written["algorithm"].startswith(f"{name}: ")
        assert written["parameters"]["editor"] == parameters
        words = ["red cup", row["target_prompt"].removeprefix("a ")]
        has_words = name in ("p2p", "shape_guided") and row["blend_words"] is not None
        assert written.get("blend_words") == (words if has_words else None)


def test_what_a_row_lacks_is_said_before_anything_starts_and_stops_no_run(
    make_job: MakeJob, columns: dict[str, Any]
) -> None:
    columns["source_prompt"] = [None, "a red cup"]
    columns["blend_words"] = [None, [["red cup", "blue cup"], ["red cup", "yellow cup"]]]
    plan, counts = run(make_job(columns, "p2p"))
    assert plan.edits_not_applicable == counts.not_applicable == 3
    assert plan.first_not_applicable == "row 0: no source prompt"
    assert counts.accepted == 1
    messages = {
        row["message"]
        for table in Ledger.open(Folder.open(make_job(columns, "p2p").output)).outcomes()
        for row in table.to_pylist()
        if row["outcome"] == "not_applicable"
    }
    assert messages == {
        "no source prompt",
        "the words 'yellow cup' are not in the prompt 'a green cup'",
    }


def test_null_text_inversion_is_planned_recorded_and_made_again(
    make_job: MakeJob, columns: dict[str, Any]
) -> None:
    """A row without a prompt is not applicable; the plan has the most rows that it may take."""
    job = make_job(columns | {"source_prompt": ["a red cup", None]}, "fpe", inversion="null_text")
    plan, counts = run(job)
    assert plan.first_not_applicable == "row 1: no source prompt, which inversion null_text needs"
    assert (counts.accepted, counts.not_applicable) == (2, 2)
    assert plan.unet_rows - 4 * 12 < counts.unet_rows <= plan.unet_rows
    (table,) = Ledger.open(Folder.open(job.output)).outcomes()
    messages = [row["message"] for row in table.to_pylist() if row["outcome"] == "accepted"]
    assert all(text.startswith("null-text inversion: ") for text in messages)
    assert recompute_sample(job, 2).ok, "as after a kill: the same again"


@pytest.mark.parametrize("editor", ["fpe", "ddim"])
def test_an_edit_friendly_inversion_is_planned_recorded_and_made_again(
    make_job: MakeJob, columns: dict[str, Any], editor: str
) -> None:
    """Its noise is of the source's pixels, so that a part made again is the same. A row without a
    prompt costs less."""
    job = make_job(
        columns | {"source_prompt": ["a red cup", None]},
        editor,
        inversion="edit_friendly",
        skipped_fraction=0.5,
        proximal={"norm": "l1", "quantile": 0.5},
    )
    plan, counts = run(job)
    assert (counts.accepted, plan.unet_rows) == (4, counts.unet_rows)
    for row in metadata(job):
        (file,) = Path(job.output).glob(f"part-*/{row['edited_file_name']}")
        written = read_provenance(file.read_bytes())["parameters"]
        assert written["inversion"] == "edit_friendly"
        assert (written["skipped_fraction"], written["source_guidance_scale"]) == (0.5, 3.5)
        assert written["proximal"] == {"norm": "l1", "quantile": 0.5, "pull": 0.0}
    assert recompute_sample(job, 4).ok


@pytest.mark.parametrize(("skipped", "rows"), [(0.36, 2 + 2), (0.75, 1 + 1)])
def test_an_edit_friendly_inversion_has_a_price_although_it_leaves_out_steps(
    make_job: MakeJob,
    columns: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    skipped: float,
    rows: int,
) -> None:
    """The calls that are timed have at least one step left; `rows` is of an edit, with guidance."""
    monkeypatch.setattr(pipeline.cost.measure, "_MOST_ROUNDS", 1)  # times do not matter here
    job = make_job(columns, "ddim", inversion="edit_friendly", skipped_fraction=skipped)
    ledger = Ledger.open(Folder.open(job.output))
    plan = make_plan(job, ledger, write=False)
    levels = rows // 2
    assert plan.unet_rows == 2 * (2 * (levels - 1) + rows * 2 - 1)
    found = price(job, plan, ledger, ProbeStore(tmp_path / "probes.json"), seconds=1e9)
    assert found.estimate.unet_rows == plan.unet_rows
    assert found.estimate.device_s > 0


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({}, []),
        ({"inversion": "edit_friendly"}, ["The inversion is `edit_friendly`."]),
        (
            {"inversion": "negative_prompt", "proximal": {}},
            ["The inversion is `negative_prompt`.", "Guidance is proximal."],
        ),
        ({"inside": {"feather_px": 2}}, ["Masks bind the edits"]),
    ],
)
def test_the_dataset_card_says_what_else_decides_the_edits(
    make_job: MakeJob, columns: dict[str, Any], edit: dict[str, Any], said: list[str]
) -> None:
    job = make_job(columns, "ddim", **edit)
    plan = make_plan(job, write=False)
    card = dataset_card(plan, metadata_layout(job, plan), LedgerCounts(), "tiny").decode()
    sentences = ["The inversion is", "Guidance is proximal", "Masks bind the edits"]
    assert [each for each in said if each not in card] == []
    assert sum(each in card for each in sentences) == len(said)


@pytest.mark.parametrize(
    ("editor", "edit"), [("ddim", {"inversion": "edit_friendly"}), ("sdedit", {})]
)
def test_a_job_of_two_steps_has_a_price_although_its_half_samples_none(
    make_job: MakeJob,
    columns: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    editor: str,
    edit: dict[str, Any],
) -> None:
    """Of one step 0.64 and 0.8 are none: what half of the steps would save is not asked for."""
    monkeypatch.setattr(pipeline.cost.measure, "_MOST_ROUNDS", 1)  # times do not matter here
    job = make_job(columns, editor, **{"steps": 2, **edit})
    ledger = Ledger.open(Folder.open(job.output))
    plan = make_plan(job, ledger, write=False)
    found = price(job, plan, ledger, ProbeStore(tmp_path / "probes.json"), seconds=1e9)
    effects = {effect.key: effect.estimate.unet_rows for effect in found.key_effects}
    assert effects["edit.steps"] == found.estimate.unet_rows == plan.unet_rows


def test_a_mask_that_leaves_nothing_to_edit_is_not_applicable(
    make_job: MakeJob, columns: dict[str, Any], png: Callable[..., bytes]
) -> None:
    black = png(Image.new("L", (SIZE_PX, SIZE_PX)))
    _, counts = run(make_job(columns | {"edit_mask": [black, black]}, "blended"))
    assert (counts.not_applicable, counts.accepted, counts.unet_rows) == (4, 0, 0.0)


def test_a_mask_of_another_size_fails_its_row_alone(
    make_job: MakeJob, columns: dict[str, Any], png: Callable[..., bytes]
) -> None:
    small, white = (png(Image.new("L", (side, side), 255)) for side in (32, SIZE_PX))
    job = make_job(columns | {"edit_mask": [small, white]}, "blended")
    _, counts = run(job)
    assert (counts.accepted, counts.failed_by_code) == (2, {"decode_failed": 2})
    (table,) = Ledger.open(Folder.open(job.output)).outcomes()
    messages = [text for text in table["message"].to_pylist() if text]
    assert all("edit_mask" in text and "32 x 32" in text for text in messages)


def test_a_synthetic_source_is_not_applicable_where_images_are_needed(make_job: MakeJob) -> None:
    columns = {"source_prompt": ["a red cup"], "seed": [1], "target_prompt": [PROMPTS]}
    for editor, applicable in (("ddim", 2), ("pnp", 0)):
        plan = make_plan(make_job(columns, editor), write=False)
        assert plan.edits_not_applicable == 2 - applicable
    _, counts = run(make_job(columns, "pnp"))
    assert (counts.not_applicable, counts.total) == (2, 2)


def test_a_mask_of_less_than_one_step_is_not_applicable_where_none_is_given(
    make_job: MakeJob, columns: dict[str, Any]
) -> None:
    """And does not end the run in its first block: the second row has no mask."""
    editor = {"name": "diffedit", "mask_strength": 0.2}
    plan, counts = run(make_job(columns, editor))
    assert plan.edits_not_applicable == counts.not_applicable == 2
    assert counts.accepted == 2


def test_strength_of_a_row_replaces_the_editors(make_job: MakeJob, columns: dict[str, Any]) -> None:
    job = make_job(columns | {"strength": [0.25, None]}, {"name": "sdedit", "strength": 1.0})
    plan, counts = run(job)
    assert plan.unet_rows == counts.unet_rows == 2 * 2 * (1 + 4)
    made = {
        json.loads(row["editor_parameters"])["strength"]: row["strength"] for row in metadata(job)
    }
    assert made == {0.25: 0.25, 1.0: None}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("strength", 1.5, "strength must be"),
        ("blend_words", ["cup"], "must be words of the source prompt and of the target prompt"),
        ("blend_words", [["a", "b"]], "blend_words has 1 pairs for 2 target prompts"),
    ],
)
def test_a_value_out_of_range_is_a_problem_of_its_row(
    make_job: MakeJob, columns: dict[str, Any], column: str, value: Any, message: str
) -> None:
    editor = "sdedit" if column == "strength" else "p2p"
    job = make_job(columns | {column: [None, value]}, editor)
    with pytest.raises(ManifestError) as raised:
        make_plan(job, write=False)
    assert "row 1" in str(raised.value)
    assert message in str(raised.value)


def test_a_column_of_another_type_is_refused_only_where_it_is_read(
    make_job: MakeJob, columns: dict[str, Any]
) -> None:
    columns |= {"strength": ["strong", "weak"]}
    with pytest.raises(JobError, match="column strength is read for the editor sdedit"):
        make_plan(make_job(columns, "sdedit"), write=False)
    job = make_job(columns, "ddim")
    run(job)
    assert {row["strength"] for row in metadata(job)} == {"strong", "weak"}


def test_ids_tell_masks_words_and_methods_apart(
    make_job: MakeJob, columns: dict[str, Any], png: Callable[..., bytes]
) -> None:
    white = png(Image.new("L", (SIZE_PX, SIZE_PX), 255))
    ids: set[bytes] = set()
    tried: list[tuple[Any, dict[str, Any]]] = [
        ("fpe", {}),
        ("ddim", {}),
        ("diffedit", {}),
        ("diffedit", {"edit_mask": [white, white]}),
        ({"name": "diffedit", "encode_ratio": 0.5}, {}),
        ("p2p", {}),
        ("p2p", {"blend_words": [None, None]}),
    ]
    for editor, changed in tried:
        ids.update(resolve_job(make_job(columns | changed, editor)).edit_ids(Repeats()))
    # The second row has no words anyway.
    assert len(ids) == 4 * len(tried) - 2
    same = set(resolve_job(make_job(columns | {"blend_words": [None] * 2}, "ddim")).edit_ids())
    assert same < ids, "ddim uses no words"


def test_an_edit_does_not_depend_on_its_block(
    make_job: MakeJob, columns: dict[str, Any], tmp_path: Path
) -> None:
    """The noise of sdedit is that of the edit's id."""
    job = make_job(columns, "sdedit")
    make_edits(job, groups_per_block=2)
    alone = job.model_copy(update={"output": str(tmp_path / "alone")})
    make_edits(alone, groups_per_block=1)
    pictures = []
    for each in (job, alone):
        files = sorted(Path(each.output).glob("part-*/edited/*.png"), key=lambda file: file.name)
        pictures.append([np.asarray(Image.open(io.BytesIO(f.read_bytes())), float) for f in files])
    apart = [np.abs(a - b).max() for a, b in zip(*pictures, strict=True)]
    assert max(apart) <= 1
    own = [np.abs(a - b).max() for a, b in zip(pictures[0], pictures[0][1:], strict=False)]
    assert min(own) > 1

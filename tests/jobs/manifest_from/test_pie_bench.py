"""PIE-Bench in its published format: brackets, words, types, run lengths, what is missing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import make_plan
from pipeline.plan.resolved_job import resolve_job
from pipeline.storage.folder import Folder
from tests.builders.finished_run import make_edits
from tests.jobs.manifest_from.conftest import Make

RUNS = [512 * 100 + 10, 30, 512 * 101 + 10, 30, 512 * 512 - 5, 900]
"""Two lines of 30 pixels, and a run that reaches beyond the end."""
PRESENT = "111000000000"


def entry(**changed: Any) -> dict[str, Any]:
    return {
        "image_path": "1_change_object_80/1_artificial/1_animal/111000000000.jpg",
        "original_prompt": "a [red] cup on a (round) table",
        "editing_prompt": "a [blue] cup on a (round) table",
        "editing_instruction": "Make the cup blue",
        "editing_type_id": "1",
        "blended_word": "red blue",
        "mask": RUNS,
    } | changed


@pytest.fixture
def folder(tmp_path: Path, save: Callable[..., Path]) -> Path:
    """data/ with one picture, and entries with all that can be wrong."""
    data = tmp_path / "data"
    save(data / "annotation_images" / entry()["image_path"], 0, 512, 512)
    save(data / "annotation_images/0_random_140/small.jpg", 1, 300, 200)
    (data / "annotation_images/0_random_140/broken.jpg").write_bytes(b"no picture")
    entries = {
        PRESENT: entry(),
        "no-words": entry(blended_word="", original_prompt="a cup", editing_type_id="9"),
        "three-words": entry(blended_word="red toy blue"),
        "missing": entry(image_path="0_random_140/missing.jpg", editing_type_id="0"),
        "small": entry(image_path="0_random_140/small.jpg"),
        "broken": entry(image_path="0_random_140/broken.jpg"),
        "odd-mask": entry(mask=[1, 2, 3]),
        "far-mask": entry(mask=[512 * 512, 1]),
        "other-type": entry(editing_type_id="12"),
        "no-prompt": entry(editing_prompt="", editing_instruction=""),
        "no-picture": entry(image_path=None),
    }
    (data / "mapping_file.json").write_text(json.dumps(entries), encoding="utf-8")
    return data


def mask_by_hand(runs: list[int], *, frame: bool) -> np.ndarray[Any, Any]:
    """As in the published evaluate.py, pixel by pixel."""
    flat = [0] * (512 * 512)
    for start, length in zip(runs[0::2], runs[1::2], strict=True):
        for place in range(start, min(start + length, 512 * 512)):
            flat[place] = 255
    for line in range(512 if frame else 0):
        for place in (line, 511 * 512 + line, line * 512, line * 512 + 511):
            flat[place] = 255
    return np.array(flat, np.uint8).reshape(512, 512)


def decoded(png: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(png)) as opened:
        assert (opened.format, opened.mode) == ("PNG", "L")
        return np.asarray(opened)


def test_prompts_words_types_and_paths(make: Make, folder: Path) -> None:
    made = make("pie-bench", folder)
    row = made.row(PRESENT)
    assert row["image"] == f"data/annotation_images/{entry()['image_path']}"
    assert row["source_prompt"] == "a red cup on a (round) table"
    assert row["target_prompt"] == "a blue cup on a (round) table"
    assert row["instruction"] == "Make the cup blue"
    assert (row["edit_type"], row["editing_type_id"]) == ("change_object", "1")
    assert row["blend_words"] == ["red", "blue"]
    assert row["problem"] is None
    assert made.row("no-words")["blend_words"] is None
    assert made.row("no-words")["problem"] is None
    assert made.row("no-words")["edit_type"] == "change_style"
    assert "reference" not in made.table.column_names


@pytest.mark.parametrize("frame", [True, False])
def test_masks_are_the_run_lengths_and_their_frame(make: Make, folder: Path, frame: bool) -> None:
    made = make("pie-bench", folder, *([] if frame else ["--no-frame"]))
    mask = decoded(made.row(PRESENT)["edit_mask"])
    assert np.array_equal(mask, mask_by_hand(RUNS, frame=frame))
    assert (mask[0, 0] == 255) == frame


@pytest.mark.parametrize(
    ("name", "problem", "has_mask"),
    [
        ("three-words", "blended_word 'red toy blue' is not two words", True),
        ("missing", "there is no picture 0_random_140/missing.jpg in ", True),
        ("small", "the picture has 300x200 px, its mask 512x512", False),
        ("broken", "the picture cannot be read: ", True),
        ("odd-mask", "the mask is not a list of starts and lengths", False),
        ("far-mask", "the mask has a run of 1 at 262144, outside of its 262144", False),
        ("other-type", "editing_type_id '12' is none of PIE-Bench's", True),
    ],
)
def test_what_is_wrong_is_in_the_row(
    make: Make, folder: Path, name: str, problem: str, has_mask: bool
) -> None:
    made = make("pie-bench", folder)
    (row,) = (each for each in made.rows if each["id"] == name)
    assert row["problem"].startswith(problem)
    assert (row["edit_mask"] is not None) == has_mask


def test_rows_that_no_job_takes_are_in_a_file_of_their_own(make: Make, folder: Path) -> None:
    made = make("pie-bench", folder)
    assert [row["id"] for row in made.left_out] == ["no-prompt", "no-picture"]
    assert made.row("no-prompt")["problem"] == (
        "the entry has neither a target prompt nor an instruction"
    )
    assert made.row("no-picture")["problem"] == "the entry has no image_path"
    assert made.row("no-picture")["image"] is None
    assert made.printed["rows"] == len(made.rows) == 9
    assert made.printed["rows_left_out"] == 2
    assert made.printed["rows_with_problems"] == 9


def test_the_command_counts_edits_by_type_and_by_editor(make: Make, folder: Path) -> None:
    made = make("pie-bench", folder)
    types = {"": 1, "change_object": 6, "change_style": 1, "random": 1}
    assert made.printed["edit_types"] == types
    editors = made.printed["editors"]
    assert editors["fpe"] == editors["p2p"] == editors["instruct_pix2pix"] == 9
    assert editors["blended"] == editors["shape_guided"] == 6, "three have no mask"


def test_the_mapping_of_the_ti2i_benchmark(
    make: Make, folder: Path, save: Callable[..., Path]
) -> None:
    """It has no masks and words, and empty source prompts; its paths have another root."""
    save(folder / "TI2I/Castle/Sketch_1.jpg", 2)
    entries = {
        "000": {
            "image_path": "data/TI2I/castle/sketch_1.jpg",
            "original_prompt": "",
            "editing_prompt": "a photo of a castle",
            "editing_instruction": "",
            "editing_type_id": "0",
        }
    }
    (folder / "mapping_file_ti2i_benchmark.json").write_text(json.dumps(entries), encoding="utf-8")
    made = make("pie-bench", folder, "--mapping", "mapping_file_ti2i_benchmark.json")
    (row,) = made.rows
    assert row["image"] == "data/TI2I/Castle/Sketch_1.jpg"
    assert (row["source_prompt"], row["instruction"], row["problem"]) == (None, None, None)
    assert not {"edit_mask", "blend_words"} & set(made.table.column_names)
    assert (made.printed["editors"]["fpe"], made.printed["editors"]["p2p"]) == (1, 0)


def test_a_manifest_is_planned_and_run_with_p2p(
    make: Make, folder: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """Rows with a missing or broken picture fail, each for itself; all others are made."""
    made = make("pie-bench", folder)
    job = Job.model_validate(
        {
            "manifest": made.printed["manifest"],
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint)},
            "editor": "p2p",
            "edit": {"steps": 4, "inside": {"column": "edit_mask"}},
        }
    )
    resolved = resolve_job(job)
    assert resolved.inputs.mask is not None
    assert resolved.inputs.has_blend_words
    assert make_plan(job, write=False).edits_total == 9
    make_edits(job, groups_per_block=2)
    ledger = Ledger.open(Folder.open(job.output))
    outcomes = [row for table in ledger.outcomes() for row in table.to_pylist()]
    reasons = sorted(row["reason"] for row in outcomes if row["outcome"] == "failed")
    assert reasons == ["decode_failed", "source_missing"]
    assert ledger.counts().accepted == 4
    assert ledger.counts().not_applicable == 3, "those without a mask, inside of which to edit"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not PIE-Bench: it has no mapping_file.json and no data/mapping_file.json."),
        ("{", "mapping_file.json cannot be read as JSON: "),
        ('{"a": {"image_path": "x"}}', "is not a mapping of PIE-Bench: it must be an object of"),
        ("[]", "is not a mapping of PIE-Bench: it must be an object of"),
    ],
)
def test_another_folder_is_refused_with_what_was_looked_for(
    refusal: Callable[..., str], tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "mapping_file.json").write_text(text, encoding="utf-8")
    target = tmp_path / "out.parquet"
    assert message in refusal("pie-bench", tmp_path, "--output", str(target))
    assert not target.exists()

"""EasyNLP's lists of edits, with the key as it is spelt there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.job.job import Job
from pipeline.plan.plan import make_plan
from tests.jobs.manifest_from.conftest import Make

CARS = [
    {"image_name": "002657.jpg", "soure_prompt": "a white car", "edit_prompt": "a red car"},
    {"image_name": "002657.jpg", "soure_prompt": "a white car", "edit_prompt": "a green car"},
    {"image_name": "002657.jpg", "soure_prompt": "a white car", "edit_prompt": "a red car"},
    {"image_name": "nowhere.jpg", "soure_prompt": "a red car", "edit_prompt": "a green car"},
    {"soure_prompt": "a red car", "edit_prompt": "a green car"},
    {"image_name": "002657.jpg", "soure_prompt": "a white car", "edit_prompt": ""},
]
FAKE = [
    {"soure_prompt": "a photo of a beagle", "edit_prompt": "a photo of a Afghan hound"},
    {"soure_prompt": "a photo of a beagle", "edit_prompt": "a photo of a dingo"},
    {"edit_prompt": "a photo of a dingo"},
]


@pytest.fixture
def lists(tmp_path: Path, save: Callable[..., Path]) -> Path:
    folder = tmp_path / "datasets"
    save(tmp_path / "cars/002657.jpg", 1)
    folder.mkdir()
    (folder / "Car_real_edit.json").write_text(json.dumps(CARS), encoding="utf-8")
    (folder / "ImageNet_fake_edit.json").write_text(json.dumps(FAKE), encoding="utf-8")
    return folder


def test_the_edits_of_a_source_are_one_row(make: Make, lists: Path, tmp_path: Path) -> None:
    made = make("easynlp", lists / "Car_real_edit.json", "--images", str(tmp_path / "cars"))
    row = made.row("Car_real_edit-00000")
    assert row["image"] == "cars/002657.jpg"
    assert row["source_prompt"] == "a white car"
    assert row["target_prompt"] == ["a red car", "a green car"]
    assert row["problem"] == "entry 2 repeats an edit of this source: a red car"
    missing = made.row("Car_real_edit-00003")
    assert missing["image"] == "cars/nowhere.jpg"
    assert missing["problem"].startswith("there is no picture nowhere.jpg in ")
    problems = {each["id"]: each["problem"].partition(";")[0] for each in made.left_out}
    assert problems == {
        "Car_real_edit-00004": "the entry has no image_name",
        "Car_real_edit-00005": "the entry has no edit_prompt",
    }
    assert "seed" not in made.table.column_names


def test_folders_in_names_may_be_there_or_not(
    make: Make, tmp_path: Path, save: Callable[..., Path]
) -> None:
    """The authors keep ImageNet's pictures in one folder; their lists name that of the class."""
    save(tmp_path / "flat/ILSVRC2012_val_00028602.JPEG", 1)
    save(tmp_path / "deep/n02088364/ILSVRC2012_val_00028602.JPEG", 1)
    name = "n02088364/ILSVRC2012_val_00028602.JPEG"
    entry = {"image_name": name, "soure_prompt": "a beagle", "edit_prompt": "a hound"}
    (tmp_path / "ImageNet_real_edit.json").write_text(json.dumps([entry]), encoding="utf-8")
    found = {}
    for folder in ("flat", "deep"):
        made = make("easynlp", tmp_path, "--images", str(tmp_path / folder))
        found[folder] = made.rows[0]["image"]
        Path(made.printed["manifest"]).unlink()
    assert found == {"flat": "flat/ILSVRC2012_val_00028602.JPEG", "deep": f"deep/{name}"}


def test_sources_without_pictures_get_the_seed_that_is_given(
    make: Make, lists: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    made = make("easynlp", lists, "--mapping", "ImageNet_fake_edit.json", "--seed", "3")
    (row,) = made.rows
    assert (row["image"], row["seed"]) == (None, 3)
    assert row["target_prompt"] == ["a photo of a Afghan hound", "a photo of a dingo"]
    assert made.left_out[0]["problem"] == "the entry has no soure_prompt"
    job = {
        "manifest": made.printed["manifest"],
        "output": str(tmp_path / "run"),
        "model": {"checkpoint": str(tiny_checkpoint)},
    }
    assert make_plan(Job.model_validate(job), write=False).edits_total == 2


def test_what_is_not_said_is_asked_for(
    refusal: Callable[..., str], lists: Path, tmp_path: Path
) -> None:
    fake = lists / "ImageNet_fake_edit.json"
    assert "it has no seeds. Give one for all of them with --seed" in refusal("easynlp", fake)
    real = lists / "Car_real_edit.json"
    assert "--seed is for lists without" in refusal("easynlp", real, "--seed", "1")
    several = refusal("easynlp", lists)
    assert "several lists of edits: Car_real_edit.json, ImageNet_fake_edit.json;" in several
    assert "it has no file named *_edit.json" in refusal("easynlp", tmp_path)
    classes = tmp_path / "ImageNet.json"
    classes.write_text(json.dumps([{"path": "a.JPEG", "source": "beagle"}]), encoding="utf-8")
    assert "is not a list of entries with edit_prompt" in refusal("easynlp", classes)

"""Wild-TI2I and ImageNet-R-TI2I: several prompts per picture, letter case, no pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.job.job import Job
from pipeline.plan.plan import make_plan
from tests.jobs.manifest_from.conftest import Make

REAL = [
    {"init_img": "./data/Bear.jpg", "target_prompts": ["a photo of a robot", "a golden bear"]},
    {"init_img": "data/nowhere.jpg", "target_prompts": ["a photo of a robot"]},
    {"init_img": "data/horse.png", "target_prompts": ["a toy horse", " ", "a toy horse"]},
    {"init_img": "data/horse.png", "target_prompts": []},
]
FAKE = [
    {"seed": 7, "prompt": "a photo of a bear", "target_prompts": ["a photo of a robot"]},
    {"seed": 8, "target_prompts": ["a photo of a robot"]},
    {"seed": "x", "prompt": "a photo of a bear", "target_prompts": ["a photo of a robot"]},
]
RENDITIONS = [
    {
        "init_img": "/ImageNetR-TI2I/castle/Embroidery_1.jpg",
        "target_prompts": ["a photo of a castle", "a castle of lego"],
    },
    {
        "init_img": "/ImageNetR-TI2I/cat/sketch_9.jpg",
        "source_prompt": "a sketch of a cat",
        "target_prompts": ["a photo of a cat"],
    },
    {"target_prompts": ["a photo of a violin"]},
    {"init_img": "/ImageNetR-TI2I/../secret.jpg", "target_prompts": ["a photo"]},
]


@pytest.fixture
def wild(tmp_path: Path, save: Callable[..., Path]) -> Path:
    folder = tmp_path / "wild-ti2i"
    save(folder / "data/bear.jpg", 1)
    save(folder / "data/horse.png", 2)
    for name, entries in (("real", REAL), ("fake", FAKE)):
        (folder / f"wild-ti2i-{name}.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    return folder


@pytest.fixture
def renditions(tmp_path: Path, save: Callable[..., Path]) -> Path:
    folder = tmp_path / "root"
    save(folder / "imagenetr-ti2i/Castle/embroidery_1.JPG", 1)
    save(folder / "ImageNetR-TI2I/Cat/sketch_9.jpg", 2)
    save(folder / "secret.jpg", 3)
    (folder / "imnetr-ti2i.yaml").write_text(yaml.safe_dump(RENDITIONS), encoding="utf-8")
    return folder


def test_real_pictures_have_all_their_prompts_in_one_row(make: Make, wild: Path) -> None:
    made = make("wild-ti2i", wild)
    row = made.row("wild-ti2i-real-000")
    assert row["image"] == "wild-ti2i/data/bear.jpg", "whatever its letter case"
    assert row["target_prompt"] == ["a photo of a robot", "a golden bear"]
    assert row["source_prompt"] is None, "the set has none"
    assert (row["seed"], row["problem"]) == (None, None)
    missing = made.row("wild-ti2i-real-001")
    assert missing["image"] == "wild-ti2i/data/nowhere.jpg", "where it ought to be"
    assert missing["problem"].startswith("there is no picture data/nowhere.jpg in ")
    repeated = made.row("wild-ti2i-real-002")
    assert repeated["target_prompt"] == ["a toy horse"]
    assert repeated["problem"] == (
        "target prompt 1 is empty; target prompt 2 is there twice: a toy horse"
    )
    assert made.row("wild-ti2i-real-003") in made.left_out


def test_generated_pictures_have_a_prompt_and_a_seed(make: Make, wild: Path) -> None:
    made = make("wild-ti2i", wild)
    row = made.row("wild-ti2i-fake-000")
    assert (row["image"], row["seed"]) == (None, 7)
    assert row["source_prompt"] == "a photo of a bear"
    problems = {each["id"]: each["problem"] for each in made.left_out}
    assert problems == {
        "wild-ti2i-real-003": "the entry has neither a target prompt nor an instruction",
        "wild-ti2i-fake-001": "the entry has a seed, and neither a picture nor a prompt",
        "wild-ti2i-fake-002": "seed 'x' is not a whole number from 0",
    }
    assert made.printed["editors"]["p2p"] == 1, "the synthetic one alone has a source prompt"
    assert made.printed["editors"]["fpe"] == made.printed["edits"] == 5


def test_one_of_the_files_can_be_chosen(make: Make, wild: Path) -> None:
    made = make("wild-ti2i", wild, "--mapping", "wild-ti2i-real.yaml")
    assert {row["id"].rpartition("-")[0] for row in made.rows} == {"wild-ti2i-real"}
    assert "seed" not in made.table.column_names


def test_renditions_are_found_whatever_the_letter_case_of_their_folders(
    make: Make, renditions: Path
) -> None:
    made = make("imagenet-r-ti2i", renditions)
    first, second = made.row("imnetr-ti2i-000"), made.row("imnetr-ti2i-001")
    assert first["image"] == "root/imagenetr-ti2i/Castle/embroidery_1.JPG"
    assert second["image"] == "root/ImageNetR-TI2I/Cat/sketch_9.jpg"
    assert (first["source_prompt"], second["source_prompt"]) == (None, "a sketch of a cat")
    assert made.row("imnetr-ti2i-002")["problem"] == "the entry has no init_img"
    assert made.row("imnetr-ti2i-003")["problem"] == (
        "the path /ImageNetR-TI2I/../secret.jpg leads out of its folder"
    )
    assert [row["id"] for row in made.left_out] == ["imnetr-ti2i-002", "imnetr-ti2i-003"]
    assert made.printed["editors"]["p2p"] == 1


def test_the_root_may_be_the_folder_that_the_paths_begin_with(make: Make, renditions: Path) -> None:
    (renditions / "imnetr-ti2i.yaml").rename(renditions / "ImageNetR-TI2I/imnetr-ti2i.yaml")
    made = make("imagenet-r-ti2i", renditions / "ImageNetR-TI2I")
    assert made.row("imnetr-ti2i-001")["image"] == "root/ImageNetR-TI2I/Cat/sketch_9.jpg"
    assert made.row("imnetr-ti2i-001")["problem"] is None


def test_two_files_that_differ_in_letter_case_are_not_chosen_between(
    make: Make, renditions: Path, save: Callable[..., Path]
) -> None:
    save(renditions / "ImageNetR-TI2I/CAT/sketch_9.jpg", 4)
    problem = make("imagenet-r-ti2i", renditions).row("imnetr-ti2i-001")["problem"]
    assert problem.startswith("/ImageNetR-TI2I/cat/sketch_9.jpg may be ")
    assert "CAT" in problem
    assert "Cat" in problem


def test_both_sets_are_planned(
    make: Make, wild: Path, renditions: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    for name, folder, edits in (("wild-ti2i", wild, 5), ("imagenet-r-ti2i", renditions, 3)):
        made = make(name, folder)
        job = {
            "manifest": made.printed["manifest"],
            "output": str(tmp_path / f"run-{name}"),
            "model": {"checkpoint": str(tiny_checkpoint)},
        }
        assert make_plan(Job.model_validate(job), write=False).edits_total == edits


@pytest.mark.parametrize("name", ["wild-ti2i", "imagenet-r-ti2i"])
def test_another_yaml_is_refused(refusal: Callable[..., str], tmp_path: Path, name: str) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("image: x\nprompt: y\n", encoding="utf-8")
    message = refusal(name, file)
    assert "is not a list of entries with target_prompts; it is an object with image" in message
    assert "it has no " in refusal(name, tmp_path)

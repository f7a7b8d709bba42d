"""MS-COCO ShapePrompts: COCO's JSON with a prompt per object, and outlines drawn as masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.manifest_from.masks import mask_of_segmentation
from tests.jobs.manifest_from.conftest import Make
from tests.jobs.manifest_from.test_pie_bench import decoded

SQUARE = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]]


def annotation(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "segmentation": SQUARE,
        "area": 400.0,
        "iscrowd": 0,
        "image_id": 38282,
        "bbox": [10.0, 5.0, 20.0, 20.0],
        "category_id": 18,
        "id": number,
        "text": "dog wearing a floral jacket",
    } | changed


@pytest.fixture
def folder(tmp_path: Path, save: Callable[..., Path]) -> Path:
    save(tmp_path / "coco/train2017/000000038282.jpg", 1, 64, 48)
    image = {"id": 38282, "file_name": "000000038282.jpg", "width": 64, "height": 48}
    missing = {"id": 7, "file_name": "000000000007.jpg", "width": 64, "height": 48}
    counts = {"counts": [48 * 10, 48, 48 * 53], "size": [48, 64]}
    lists = {
        "val": [
            annotation(1),
            annotation(2, segmentation=counts, iscrowd=1),
            annotation(3, segmentation={"counts": "abc", "size": [48, 64]}),
            annotation(4, image_id=7),
            annotation(5, image_id=8),
            annotation(6, text=""),
        ],
        "test": [annotation(9)],
    }
    for name, objects in lists.items():
        found = {
            "annotations": objects,
            "images": [image, missing],
            "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
        }
        file = tmp_path / f"shape/mscoco_shape_prompts/{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")
    return tmp_path / "shape"


def test_objects_are_rows_with_their_category_prompt_and_mask(
    make: Make, folder: Path, tmp_path: Path
) -> None:
    made = make("shapeprompts", folder, "--images", str(tmp_path / "coco"))
    row = made.row("1")
    assert row["image"] == "coco/train2017/000000038282.jpg"
    assert (row["source_prompt"], row["target_prompt"]) == ("dog", "dog wearing a floral jacket")
    assert (row["split"], row["category_id"], row["image_id"]) == ("val", 18, 38282)
    square = np.zeros((48, 64), np.uint8)
    square[5:25, 10:30] = 255
    assert np.array_equal(decoded(row["edit_mask"]), square)
    column = np.zeros((48, 64), np.uint8)
    column[:, 10] = 255
    assert np.array_equal(decoded(made.row("2")["edit_mask"]), column)
    assert made.row("9")["split"] == "test"
    assert made.row("3")["edit_mask"] is None
    assert made.row("3")["problem"] == (
        "the segmentation has compressed run lengths, which are not read"
    )
    assert made.row("4")["problem"].startswith("there is no picture 000000000007.jpg in ")
    assert made.row("5")["problem"].startswith("the entry has no image in images; ")
    assert [each["id"] for each in made.left_out] == ["5", "6"]
    assert made.printed["editors"]["shape_guided"] == 4, "all but the one without a mask"


def test_one_split(make: Make, folder: Path, refusal: Callable[..., str], tmp_path: Path) -> None:
    made = make("shapeprompts", folder, "--split", "test", "--images", str(tmp_path / "coco"))
    assert [row["id"] for row in made.rows] == ["9"]
    assert "has no split 'dev'; there are val, test" in refusal(
        "shapeprompts", folder, "--split", "dev"
    )


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "the segmentation is neither polygons nor run lengths"),
        ([[1.0, 2.0, 3.0, 4.0]], "a polygon of fewer than three points"),
        ({"counts": [3, 4], "size": [48, 64]}, "the segmentation's runs are not those of 64x48 px"),
    ],
)
def test_what_is_no_outline_is_refused(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_of_segmentation(segmentation, 64, 48)


def test_several_polygons_are_one_mask() -> None:
    """A mask of two parts, one of them beyond the edge, and a triangle by its pixels' centres."""
    parts = [[0, 0, 4, 0, 4, 4, 0, 4], [12, 12, 99, 12, 99, 99, 12, 99]]
    mask = mask_of_segmentation(parts, 16, 16)
    assert mask.sum() == 16 + 16
    triangle = mask_of_segmentation([[0, 0, 16, 0, 0, 16]], 16, 16)
    y, x = np.mgrid[0:16, 0:16] + 0.5
    assert np.array_equal(triangle[x + y != 16], (x + y < 16)[x + y != 16])


def test_annotations_without_text_are_plain_coco(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    plain = {"annotations": [{"id": 1}], "images": [], "categories": []}
    (tmp_path / "val.json").write_text(json.dumps(plain), encoding="utf-8")
    assert "is not of MS-COCO ShapePrompts: it must be an object with annotations" in refusal(
        "shapeprompts", tmp_path
    )

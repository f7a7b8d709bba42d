"""Boxes and masks through all stages without Ray, up to their columns in the output."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fpe_core.image.boxes import Box, fit_box
from fpe_core.image.fit import Fit
from fpe_core.image.masks import encode_mask, fit_mask
from pipeline.errors import JobError, ManifestError
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import make_plan
from pipeline.storage.folder import Folder
from pipeline.verify.verify import verify_run
from tests.builders.finished_run import make_edits
from tests.builders.tiny_checkpoint import SIZE_PX

WIDTH, HEIGHT = 90, 60
BOXES = [[30.0, 10.0, 40.0, 30.0], [0.0, 0.0, 10.0, 60.0], [5.0, 5.0, 20.0, 20.0]]
BOX_TYPE = pa.list_(pa.list_(pa.float64()))
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

Png = Callable[[Image.Image], bytes]
Picture = Callable[..., Image.Image]
MakeJob = Callable[..., Job]


def drawn(box: list[float], value: int = 255) -> np.ndarray:
    """A rectangle as a mask."""
    left, top, width, height = map(int, box)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + height, left : left + width] = value
    return mask


@pytest.fixture
def make_job(tmp_path: Path, tiny_checkpoint: Path, picture: Picture, png: Png) -> MakeJob:
    """make_job(columns, annotations, ...): a job of as many pictures as the columns have rows."""

    def make(
        columns: dict[str, pa.Array],
        annotations: dict[str, Any] | None,
        image: pa.Array | None = None,
        **sections: Any,
    ) -> Job:
        rows = len(next(iter(columns.values())))
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for number in range(rows):
            (folder / f"{number}.png").write_bytes(png(picture(number, WIDTH, HEIGHT)))
        images = pa.array([f"{n}.png" for n in range(rows)]) if image is None else image
        targets = pa.array([["a red cat", "a blue dog"]] * rows)
        table = pa.table({"image": images, "target_prompt": targets, **columns})
        pq.write_table(table, folder / "manifest.parquet")
        values = {
            "manifest": str(folder / "manifest.parquet"),
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint)},
            "edit": {"steps": 1, "guidance_scale": 1.0},
            **({} if annotations is None else {"annotations": annotations}),
            **sections,
        }
        return Job.model_validate(values)

    return make


def metadata(job: Job) -> list[dict[str, Any]]:
    files = sorted(Path(job.output).glob("part-*/metadata.parquet"))
    return [row | {"part": f.parent} for f in files for row in pq.read_table(f).to_pylist()]


def fit_of(row: dict[str, Any]) -> Fit:
    return Fit(**{n.removeprefix("fit_"): row[n] for n in row if n.startswith("fit_")})


def outcomes(job: Job) -> list[dict[str, Any]]:
    ledger = Ledger.open(Folder.open(job.output))
    return [row for table in ledger.outcomes() for row in table.to_pylist()]


@pytest.mark.parametrize("policy", ["crop", "pad"])
def test_boxes_and_masks_follow_the_picture(make_job: MakeJob, policy: str) -> None:
    """Boxes as COCO has them, and each box drawn as a mask: both say the same in the output."""
    masks = [drawn(box, value) for box, value in zip(BOXES, (255, 7, 1), strict=True)]
    cells = [[{"bytes": encode_mask(mask), "path": None} for mask in masks]]
    job = make_job(
        {"box": pa.array([BOXES], BOX_TYPE), "seg": pa.array(cells, pa.list_(IMAGE_TYPE))},
        {"boxes": {"column": "box"}, "masks": {"column": "seg"}},
        images={"fit": policy},
    )
    make_edits(job, 1)
    rows = metadata(job)
    assert len(rows) == 2
    for row in rows:
        fit = fit_of(row)
        assert row["box"] == BOXES, "the original's boxes are carried as they are"
        assert "seg" not in row, "and so is no mask: it comes fitted"
        for number, box in enumerate(BOXES):
            expected = fit_box(Box.read(box, "xywh"), fit, SIZE_PX, SIZE_PX)
            assert row["edited_box"][number] == expected.box.write("xywh")
            assert row["box_visible"][number] == expected.visible
            with Image.open(row["part"] / row["mask_file_names"][number]) as image:
                values = np.asarray(image)
            fitted = fit_mask(masks[number], fit, SIZE_PX, SIZE_PX)
            assert np.array_equal(values, fitted.values)
            assert row["mask_visible"][number] == fitted.visible
        for name in ("box", "mask"):  # the second lies where a crop cuts
            is_gone = row[f"{name}_structure"][1] is None
            assert is_gone is (row[f"{name}_visible"][1] == 0) is (policy == "crop")
            assert not is_gone or row[f"{name}_verdict"][1] == "drop"
        assert {*row["box_verdict"], *row["mask_verdict"]} <= {"keep", "review", "drop"}
    files = {name for row in rows for name in row["mask_file_names"]}
    assert len(files) == 3, "once for both edits"
    found = verify_run(job)
    assert (found.problems, found.images_checked) == ((), 2 + 1 + 3)


def test_the_output_loads_with_masks_and_boxes(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "data" / "masks").mkdir(parents=True)
    mask = drawn(BOXES[0], 3)
    (tmp_path / "data" / "masks" / "m.png").write_bytes(encode_mask(mask))
    job = make_job(
        {
            "mask": pa.array(["masks/m.png", None]),
            "box": pa.array([BOXES[0], None], pa.list_(pa.int32(), 4)),
        },
        {"boxes": {"column": "box"}, "masks": {"column": "mask"}},
        images={"allowed_sources": [str(tmp_path / "data")]},
    )
    make_edits(job, 2)
    data = datasets.load_dataset(job.output, split="train", cache_dir=str(tmp_path / "cache"))
    with_mask, without = data[0], data[2]
    fitted = fit_mask(mask, fit_of(with_mask), SIZE_PX, SIZE_PX)
    assert np.array_equal(np.asarray(with_mask["mask"]), fitted.values)
    assert len(with_mask["edited_box"]) == 4
    assert with_mask["box_verdict"] in ("keep", "review", "drop")
    for name in ("mask", "mask_verdict", "edited_box", "box_verdict", "box_structure"):
        assert without[name] is None
    assert verify_run(job).problems == ()


def test_verify_misses_a_mask(make_job: MakeJob) -> None:
    cells = pa.array([{"bytes": encode_mask(drawn(BOXES[0])), "path": None}], IMAGE_TYPE)
    job = make_job({"m": cells}, {"masks": {"column": "m"}})
    make_edits(job, 1)
    (file,) = Path(job.output).glob("part-*/mask/*.png")
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    assert "does not decode" in "".join(verify_run(job).problems)
    file.unlink()
    assert "missing" in "".join(verify_run(job).problems)


def test_masks_of_one_picture_in_two_rows_do_not_meet(make_job: MakeJob) -> None:
    """Without ids these rows have one source and one source_id."""
    cells = [{"bytes": encode_mask(drawn(box)), "path": None} for box in (BOXES[0], BOXES[2])]
    job = make_job(
        {"m": pa.array(cells, IMAGE_TYPE)},
        {"masks": {"column": "m"}},
        image=pa.array(["0.png", "0.png"]),
    )
    make_edits(job, 2)
    rows = metadata(job)
    assert len({row["source_id"] for row in rows}) == 1
    assert len({row["mask_file_name"] for row in rows}) == 2
    for row, box in zip(rows[::2], (BOXES[0], BOXES[2]), strict=True):
        with Image.open(row["part"] / row["mask_file_name"]) as image:
            expected = fit_mask(drawn(box), fit_of(row), SIZE_PX, SIZE_PX).values
            assert np.array_equal(np.asarray(image), expected)


def test_a_verdict_is_the_boxs_and_not_the_edits(make_job: MakeJob) -> None:
    """No edit can keep a box here, and every edit is accepted: nobody asked a judge."""
    boxes = {"column": "box", "keep_at_least": 1.0, "review_at_least": 1.0}
    job = make_job({"box": pa.array([BOXES], BOX_TYPE)}, {"boxes": boxes})
    make_edits(job, 1)
    assert [row["box_verdict"] for row in metadata(job)] == [["drop"] * 3] * 2
    assert [row["outcome"] for row in outcomes(job)] == ["accepted"] * 2


def test_a_box_that_is_hardly_there_is_to_be_reviewed(make_job: MakeJob) -> None:
    boxes = {"column": "box", "keep_at_least": 0.0, "review_at_least": 0.0, "format": "xyxy"}
    cells = pa.array([[[30.0, 10.0, 70.0, 40.0], [0.0, 0.0, 20.0, 60.0]]], BOX_TYPE)
    job = make_job({"box": cells}, {"boxes": boxes})
    make_edits(job, 1)
    (row, _) = metadata(job)
    assert row["box_visible"] == pytest.approx([1.0, 0.25])
    assert row["box_verdict"] == ["keep", "review"]
    scale = SIZE_PX / HEIGHT
    assert row["edited_box"][1] == pytest.approx([0, 0, 5 * scale, SIZE_PX])


@pytest.mark.parametrize(
    "objects",
    [
        pa.array(
            [{"bbox": BOXES, "category": [1, 2, 3]}, None],
            pa.struct([("bbox", BOX_TYPE), ("category", pa.list_(pa.int64()))]),
        ),
        pa.array(
            [[{"bbox": box, "category": 1} for box in BOXES], None],
            pa.list_(pa.struct([("bbox", pa.list_(pa.float32())), ("category", pa.int64())])),
        ),
    ],
    ids=["struct of lists", "list of structs"],
)
def test_boxes_may_be_fields_of_structs(make_job: MakeJob, objects: pa.Array) -> None:
    job = make_job({"objects": objects}, {"boxes": {"column": "objects.bbox"}})
    make_edits(job, 2)
    rows = metadata(job)
    assert len(rows[0]["edited_objects_bbox"]) == len(rows[0]["objects_bbox_verdict"]) == 3
    assert rows[2]["edited_objects_bbox"] is rows[2]["objects_bbox_verdict"] is None


def test_no_boxes_are_no_boxes(make_job: MakeJob) -> None:
    job = make_job({"box": pa.array([[], None], BOX_TYPE)}, {"boxes": {"column": "box"}})
    make_edits(job, 2)
    assert [row["edited_box"] for row in metadata(job)] == [[], [], None, None]
    assert [row["box_verdict"] for row in metadata(job)] == [[], [], None, None]


def test_a_column_of_ours_keeps_its_name(make_job: MakeJob) -> None:
    """The manifest has columns that are called as what comes out."""
    taken = {name: pa.array(["x"]) for name in ("edited_box", "box_verdict", "mask")}
    job = make_job({"box": pa.array([BOXES], BOX_TYPE), **taken}, {"boxes": {"column": "box"}})
    make_edits(job, 1)
    (row, _) = metadata(job)
    assert row["manifest_edited_box"] == row["manifest_box_verdict"] == row["mask"] == "x"
    assert len(row["edited_box"]) == 3


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ([[1.0, 2.0, 3.0]], "four numbers, this one has 3"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0]], "this one has 5"),
        ([[1.0, 2.0, float("nan"), 4.0]], "finite"),
        ([[1.0, 2.0, float("inf"), 4.0]], "finite"),
        ([[1.0, None, 3.0, 4.0]], "finite"),
        ([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, -3.0, 4.0]], r"negative .*number 1 of its list"),
        ([None], "null"),
    ],
)
def test_a_box_that_is_none_is_a_problem_of_its_row(
    make_job: MakeJob, cell: list[Any], said: str
) -> None:
    job = make_job({"box": pa.array([BOXES, cell], BOX_TYPE)}, {"boxes": {"column": "box"}})
    with pytest.raises(ManifestError, match=said) as error:
        make_plan(job)
    assert error.value.total == 1
    assert error.value.problems[0].startswith("row 1 ")
    assert not Path(job.output).exists()


def test_nothing_is_drawn_on_a_picture_that_is_not_there_yet(make_job: MakeJob) -> None:
    job = make_job(
        {
            "box": pa.array([BOXES], BOX_TYPE),
            "source_prompt": pa.array(["a dog"]),
            "seed": pa.array([1]),
        },
        {"boxes": {"column": "box"}},
        image=pa.array([None], pa.string()),
    )
    with pytest.raises(ManifestError, match="no image to which they could belong"):
        make_plan(job)


def test_an_empty_place_in_a_list_of_masks_is_a_problem(make_job: MakeJob) -> None:
    job = make_job({"m": pa.array([["a.png", None]])}, {"masks": {"column": "m"}})
    with pytest.raises(ManifestError, match=r"m is empty \(number 1 of its list\)"):
        make_plan(job)


def as_jpeg(mask: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(mask).save(sink, "JPEG")
    return sink.getvalue()


@pytest.mark.parametrize(
    ("mask", "code", "said"),
    [
        ("nowhere.png", "source_missing", "nowhere.png"),
        ("/etc/passwd", "source_forbidden", "allowed_sources"),
        ("../data/../../x.png", "source_forbidden", "allowed_sources"),
        (b"not a mask", "decode_failed", "PNG"),
        (b"", "decode_failed", "empty"),
        (as_jpeg(drawn(BOXES[0])), "decode_failed", "lossless"),
        (encode_mask(drawn(BOXES[0]).T), "decode_failed", "60 x 90 px and its picture"),
        (encode_mask(np.zeros((400, 400), np.uint8)), "image_too_large", "max_pixels"),
        (b"x" * 30_000, "image_too_large", "max_bytes"),
    ],
)
def test_a_bad_mask_costs_its_row(
    make_job: MakeJob, tmp_path: Path, mask: str | bytes, code: str, said: str
) -> None:
    good = {"bytes": encode_mask(drawn(BOXES[0])), "path": None}
    bad = {"bytes": mask, "path": None} if isinstance(mask, bytes) else {"path": mask}
    job = make_job(
        {"m": pa.array([[good, bad], [good]], pa.list_(IMAGE_TYPE))},
        {"masks": {"column": "m"}},
        images={
            "allowed_sources": [str(tmp_path / "data")],
            "max_pixels": 100 * 100,
            "max_bytes": 20_000,
        },
    )
    make_edits(job, 2)
    found = [(row["outcome"], row["reason"], row["message"]) for row in outcomes(job)]
    assert [outcome for outcome, _, _ in found] == ["failed", "failed", "accepted", "accepted"]
    assert found[0][1] == code
    assert "mask 1 (" in found[0][2]
    assert said in found[0][2]


def test_the_plan_counts_masks_that_the_rules_refuse(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(
        {"m": pa.array(["/etc/passwd", "m.png"])},
        {"masks": {"column": "m"}},
        images={"allowed_sources": [str(tmp_path / "data")]},
    )
    assert make_plan(job, write=False).sources_refused == 1


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"boxes": {"column": "bbox"}}, "no column 'bbox'; there are .*box"),
        ({"boxes": {"column": "objects.box"}}, "no field 'box'"),
        ({"boxes": {"column": "objects"}}, "such as objects.bbox"),
        ({"boxes": {"column": "text"}}, "four numbers"),
        ({"masks": {"column": "m"}}, "no column 'm'"),
        ({"masks": {"column": "box"}}, "must be text"),
        ({"masks": {"column": "image"}}, "meaning of its own"),
        ({"boxes": {"column": "mask"}, "masks": {"column": "text"}}, "called mask_verdict"),
    ],
)
def test_columns_that_are_not_there_or_hold_something_else(
    make_job: MakeJob, annotations: dict[str, Any], said: str
) -> None:
    columns = {
        "box": pa.array([BOXES], BOX_TYPE),
        "mask": pa.array([BOXES], BOX_TYPE),
        "objects": pa.array([{"bbox": BOXES}], pa.struct([("bbox", BOX_TYPE)])),
        "text": pa.array(["x.png"]),
    }
    with pytest.raises(JobError, match=said):
        make_plan(make_job(columns, annotations))


def test_a_label_cannot_replace_what_boxes_are_read_from(make_job: MakeJob) -> None:
    job = make_job(
        {"box": pa.array([BOXES], BOX_TYPE)},
        {"boxes": {"column": "box"}},
        prompts={"target": "a {box} cat", "labels": {"box": ["red"]}},
    )
    with pytest.raises(JobError, match=r"prompts.labels.box"):
        make_plan(job)


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({}, "names no column"),
        ({"boxes": {"column": "b", "format": "yolo"}}, "xywh"),
        ({"boxes": {"column": "b", "review_at_least": 0.9, "keep_at_least": 0.8}}, "at most"),
        ({"masks": {"column": ""}}, "at least 1"),
    ],
)
def test_a_section_that_cannot_be_meant(annotations: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Job.model_validate({"manifest": "m", "output": "o", "annotations": annotations})

"""`edit.inside`: masks that bind, from the job file to the pixels in the output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fpe_core import method_names
from pipeline.errors import JobError, ManifestError
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import make_plan
from pipeline.plan.resolved_job import Repeats, resolve_job
from pipeline.storage.folder import Folder
from pipeline.verify.recompute import ComparisonVerdict, recompute_sample
from pipeline.verify.verify import verify_run
from pipeline.write.provenance import read_provenance
from tests.builders.tiny_checkpoint import SIZE_PX
from tests.pipeline.edit.test_editors import READS_INSTRUCTIONS, metadata, run

MakeJob = Callable[..., Job]
WHITE = (slice(16, 40), slice(16, 40))
"""What is white in the mask of the manifest's first row."""


def pictures(job: Job) -> list[tuple[np.ndarray, np.ndarray]]:
    """(source, edit) of every edit, RGB."""
    made = []
    for part in sorted(Path(job.output).glob("part-*")):
        for row in metadata(job):
            files = [part / row["source_file_name"], part / row["edited_file_name"]]
            if all(file.exists() for file in files):
                source, edit = (np.asarray(Image.open(file).convert("RGB")) for file in files)
                made.append((source, edit))
    return made


def area(*, inverted: bool = False) -> np.ndarray:
    white = np.zeros((SIZE_PX, SIZE_PX), bool)
    white[WHITE] = True
    return ~white if inverted else white


@pytest.mark.parametrize("editor", sorted({*method_names()} - {READS_INSTRUCTIONS}))
def test_every_method_is_bound_planned_verified_and_made_again(
    make_job: MakeJob, columns: dict[str, Any], editor: str
) -> None:
    """The second row has no mask, which is not applicable."""
    job = make_job(columns, editor, inside={"feather_px": 2})
    plan, counts = run(job)
    assert (plan.edits_total, plan.edits_not_applicable) == (4, 2)
    assert plan.first_not_applicable == "row 1: no mask, inside of which it is edited"
    assert (counts.accepted, counts.failed, counts.not_applicable) == (2, 0, 2)
    assert counts.unet_rows == plan.unet_rows
    made = pictures(job)
    assert len(made) == 2
    for source, edit in made:
        same = (source == edit).all(axis=-1)
        assert same[~area()].all()
        assert same[area()].mean() < 0.5
    assert verify_run(job).ok
    again = recompute_sample(job, 2)
    assert again.ok, again.comparisons
    assert not again.of(ComparisonVerdict.NOT_MADE)
    (file,) = Path(job.output).glob(f"part-*/{metadata(job)[0]['edited_file_name']}")
    parameters = read_provenance(file.read_bytes())["parameters"]
    assert parameters["inside"] == {"feather_px": 2, "padding_px": 0, "invert": False}


def test_another_column_holds_the_masks_for_the_editor_too(
    make_job: MakeJob, columns: dict[str, Any], png: Callable[..., bytes]
) -> None:
    masks = columns.pop("edit_mask")
    black = png(Image.new("L", (SIZE_PX, SIZE_PX)))
    job = make_job(
        columns | {"where": masks, "edit_mask": [black, black]},
        "blended",
        inside={"column": "where"},
    )
    _, counts = run(job)
    assert (counts.accepted, counts.not_applicable) == (2, 2)
    for source, edit in pictures(job):
        assert (source == edit).all(axis=-1)[~area()].all()


def test_the_edit_is_around_an_inverted_mask(make_job: MakeJob, columns: dict[str, Any]) -> None:
    job = make_job(columns, "fpe", inside={"invert": True, "padding_px": 2})
    run(job)
    grown = np.zeros((SIZE_PX, SIZE_PX), bool)
    grown[14:42, 14:42] = True
    for source, edit in pictures(job):
        same = (source == edit).all(axis=-1)
        assert same[grown].all()
        assert same[~grown].mean() < 0.5


def test_what_padding_added_around_a_source_is_not_edited(
    make_job: MakeJob, columns: dict[str, Any], png: Callable[..., bytes]
) -> None:
    """A wide source, fitted whole: above and below it there is nothing to edit."""
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), np.uint8))
    mask = np.zeros((40, 80), np.uint8)
    mask[10:20, 10:20] = 255
    columns |= {"image": [png(wide)] * 2, "edit_mask": [png(Image.fromarray(mask))] * 2}
    job = make_job(columns, "fpe", inside={"invert": True})
    job = job.model_copy(update={"images": job.images.model_copy(update={"fit": "pad"})})
    _, counts = run(job)
    assert counts.accepted == 4
    bar = SIZE_PX // 4
    for source, edit in pictures(job):
        same = (source == edit).all(axis=-1)
        assert same[:bar].all()
        assert same[-bar:].all()
        assert same[bar:-bar].mean() < 0.5


@pytest.mark.parametrize(
    ("boxes", "box_format"),
    [
        (pa.array([[16, 16, 24, 24], None], pa.list_(pa.int64())), "xywh"),
        (
            pa.array(
                [[[16.0, 16, 40, 30], [16.0, 28, 40, 40]], []], pa.list_(pa.list_(pa.float64()))
            ),
            "xyxy",
        ),
    ],
)
def test_boxes_serve_as_masks(
    make_job: MakeJob, columns: dict[str, Any], boxes: pa.Array, box_format: str
) -> None:
    """One box a row, and a list of boxes; a row without any is not applicable."""
    del columns["edit_mask"]
    inside = {"boxes": "box", "format": box_format}
    job = make_job(columns | {"box": boxes}, "fpe", inside=inside)
    plan, counts = run(job)
    assert plan.edits_not_applicable == counts.not_applicable == 2
    assert counts.accepted == 2
    for source, edit in pictures(job):
        same = (source == edit).all(axis=-1)
        assert same[~area()].all()
        assert same[area()].mean() < 0.5
    assert verify_run(job).ok
    assert recompute_sample(job, 2).ok
    assert [row["box"] for row in metadata(job)] == [boxes[0].as_py()] * 2, "carried as before"


def test_boxes_of_structs_are_grown(make_job: MakeJob, columns: dict[str, Any]) -> None:
    del columns["edit_mask"]
    objects = [{"bbox": [[20, 20, 16, 16]]}, {"bbox": [[100, 100, 5, 5]]}]
    job = make_job(
        columns | {"objects": objects}, "fpe", inside={"boxes": "objects.bbox", "padding_px": 4}
    )
    _, counts = run(job)
    assert (counts.accepted, counts.not_applicable) == (2, 2), "the second lies outside the image"
    for source, edit in pictures(job):
        assert (source == edit).all(axis=-1)[~area()].all()


@pytest.mark.parametrize(("value", "invert"), [(0, False), (255, True), (255, False), (0, True)])
def test_empty_and_full_masks_are_not_applicable(
    make_job: MakeJob, columns: dict[str, Any], png: Callable[..., bytes], value: int, invert: bool
) -> None:
    mask = png(Image.new("L", (SIZE_PX, SIZE_PX), value))
    job = make_job(columns | {"edit_mask": [mask, mask]}, "fpe", inside={"invert": invert})
    _, counts = run(job)
    assert (counts.not_applicable, counts.accepted, counts.unet_rows) == (4, 0, 0.0)
    (table,) = Ledger.open(Folder.open(job.output)).outcomes()
    expected = "covers all" if (value == 255) != invert else "leaves nothing"
    assert all(expected in text for text in table["message"].to_pylist())


def test_a_mask_of_another_size_fails_its_row_alone(
    make_job: MakeJob, columns: dict[str, Any], png: Callable[..., bytes]
) -> None:
    small = png(Image.new("L", (32, 32), 255))
    right = columns["edit_mask"][0].as_py()
    _, counts = run(make_job(columns | {"edit_mask": [small, right]}, "fpe", inside={}))
    assert (counts.accepted, counts.failed_by_code) == (2, {"decode_failed": 2})


def test_ids_tell_masks_boxes_and_their_parameters_apart(
    make_job: MakeJob, columns: dict[str, Any], png: Callable[..., bytes]
) -> None:
    white = png(Image.new("L", (SIZE_PX, SIZE_PX), 255))
    columns["box"] = [[1, 2, 3, 4], [2, 2, 3, 4]]
    tried: list[tuple[Any, dict[str, Any]]] = [
        (None, {}),
        ({}, {}),
        ({}, {"edit_mask": [white, white]}),
        ({"feather_px": 1}, {}),
        ({"padding_px": 1}, {}),
        ({"invert": True}, {}),
        ({"boxes": "box"}, {}),
        ({"boxes": "box"}, {"box": [[1, 2, 3, 5], [2, 2, 3, 5]]}),
    ]
    ids: set[bytes] = set()
    for inside, changed in tried:
        job = make_job(columns | changed, "fpe", inside=inside)
        ids.update(resolve_job(job).edit_ids(Repeats()))
    assert len(ids) == 4 * len(tried)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ({"column": "nowhere"}, "edit.inside.column: the manifest has no column 'nowhere'; there"),
        ({"column": "image"}, "edit.inside.column: image has a meaning of its own"),
        ({"column": "box"}, "column box is read for edit.inside and must be text"),
        ({"boxes": "nowhere"}, "edit.inside.boxes: the manifest has no column 'nowhere'"),
        ({"boxes": "edit_mask"}, "edit.inside.boxes: 'edit_mask' must be one box"),
    ],
)
def test_a_column_that_holds_none_is_refused(
    make_job: MakeJob, columns: dict[str, Any], inside: dict[str, Any], message: str
) -> None:
    columns["box"] = [[1, 2, 3, 4], [2, 2, 3, 4]]
    with pytest.raises(JobError, match=message):
        make_plan(make_job(columns, "fpe", inside=inside), write=False)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ({"column": "a", "boxes": "b"}, "it takes one of them"),
        ({"format": "xyxy"}, "format is that of boxes"),
        ({"feather_px": -1}, "greater than or equal to 0"),
        ({"feather": 2}, "Extra inputs are not permitted"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    make_job: MakeJob, columns: dict[str, Any], inside: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_job(columns, "fpe", inside=inside)


def test_boxes_that_are_shares_of_the_picture_are_refused(
    make_job: MakeJob, columns: dict[str, Any]
) -> None:
    job = make_job(
        columns | {"box": [[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.5, 0.5]]},
        "fpe",
        inside={"boxes": "box"},
    )
    with pytest.raises(ManifestError) as raised:
        make_plan(job, write=False)
    assert "row 0" in str(raised.value)
    assert "shares of the picture" in str(raised.value)


def test_a_synthetic_source_is_not_applicable(make_job: MakeJob) -> None:
    columns = {
        "source_prompt": ["a red cup"],
        "seed": [1],
        "target_prompt": [["a blue cup"]],
        "edit_mask": pa.array([None], pa.string()),
    }
    plan, counts = run(make_job(columns, "fpe", inside={}))
    assert plan.edits_not_applicable == counts.not_applicable == counts.total == 1

"""Retries, reconstruction figures and verdicts on regions agree with the run."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fpe_core.judging.rules import RejectReason
from fpe_core.scores.edit_scores import EditScores
from pipeline.errors import StorageError
from pipeline.ledger.outcome import AttemptRecord, EditKey, EditOutcome, outcomes_table
from pipeline.report.judging import reconstruction_figures, region_counts, retries_by_reason
from pipeline.run.stats import Retries
from pipeline.storage.folder import Folder


def accepted(number: int, *, source: int = 0, part: str = "part-a") -> EditOutcome:
    key = EditKey(bytes([number] * 16), bytes(16), bytes([source] * 16), 0, "a red cat", "colour")
    name = f"{part}/edited/{number}.png"
    return key.accepted(part=part, edited_file_name=name, unet_rows=30.0, seconds=1.0)


def tries(*reasons: str) -> tuple[AttemptRecord, ...]:
    return tuple(AttemptRecord("{}", reason, "", 10.0, 0.5, EditScores()) for reason in reasons)


def test_retries_are_counted_by_the_first_reason() -> None:
    outcomes = [
        dataclasses.replace(accepted(1), tries=tries("no_change", "off_target", "")),
        dataclasses.replace(accepted(2), tries=tries("no_change", "no_change")),
        dataclasses.replace(accepted(3), tries=tries("off_target", "")),
        accepted(4),
    ]
    found = retries_by_reason(outcomes_table(outcomes))
    assert list(found) == ["no_change", "off_target"]
    assert found["no_change"] == Retries(edits=2, attempts=3, accepted=1, unet_rows=30.0)
    assert found["off_target"] == Retries(edits=1, attempts=1, accepted=1, unet_rows=10.0)
    assert retries_by_reason(outcomes_table([accepted(4)])) == {}


def test_a_source_has_its_figures_once() -> None:
    figures = {0: 30.0, 1: 18.0, 2: math.inf}
    outcomes = [
        dataclasses.replace(
            accepted(3 * source + number, source=source), autoencoder_psnr_db=figure
        )
        for source, figure in figures.items()
        for number in (1, 2, 3)
    ]
    judge = {"reconstruction": {"autoencoder_psnr_db_at_least": 20}}
    found = reconstruction_figures(outcomes_table(outcomes), judge)
    assert found is not None
    assert (found.sources, found.lowest, found.median) == (3, 18.0, 30.0)
    assert (found.at_least, found.below) == (20.0, 1)
    assert reconstruction_figures(outcomes_table([accepted(1)]), judge) is None


def test_a_source_without_a_number_is_below_every_threshold() -> None:
    outcome = dataclasses.replace(accepted(1), autoencoder_psnr_db=math.nan)
    judge = {"reconstruction": {"autoencoder_psnr_db_at_least": 20}}
    found = reconstruction_figures(outcomes_table([outcome]), judge)
    assert found is not None
    assert (found.sources, found.below) == (1, 1)
    assert math.isnan(found.median)


def put_metadata(folder: Folder, part: str, **columns: list[object]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    folder.write_new(f"{part}/metadata.parquet", sink.getvalue())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path))


ANNOTATIONS = {
    "boxes": {"column": "objects.bbox", "keep_at_least": 0.8, "review_at_least": 0.5},
    "masks": {"column": "mask_uri"},
}


def test_verdicts_of_all_parts_are_counted_one_a_row_or_a_list(folder: Folder) -> None:
    name = "objects_bbox_verdict"
    put_metadata(folder, "part-a", **{name: [["keep", "drop"], None], "mask_verdict": ["keep", ""]})
    put_metadata(folder, "part-b", **{name: [["keep"], ["review", "keep"]]})
    rows = outcomes_table([accepted(1), accepted(2, part="part-b"), accepted(3, part="part-b")])
    notes: list[str] = []
    boxes, masks = region_counts(folder, rows, ANNOTATIONS, notes)
    assert (boxes.kind, boxes.column) == ("boxes", "objects.bbox")
    assert (boxes.keep, boxes.review, boxes.drop, boxes.total) == (3, 1, 1, 5)
    assert (boxes.keep_at_least, boxes.review_at_least) == (0.8, 0.5)
    assert (masks.kind, masks.keep, masks.total, masks.keep_at_least) == ("masks", 1, 1, None)
    assert notes == []


def test_a_name_with_a_dot_in_it_is_found_too(folder: Folder) -> None:
    put_metadata(folder, "part-a", **{"a.b_verdict": ["review"]})
    annotations = {"boxes": {"column": "a.b"}}
    (boxes,) = region_counts(folder, outcomes_table([accepted(1)]), annotations, [])
    assert boxes.review == 1


def test_metadata_that_is_gone_is_noted_and_damaged_one_is_told(folder: Folder) -> None:
    put_metadata(folder, "part-a", box_verdict=["keep"])
    rows = outcomes_table([accepted(1), accepted(2, part="part-b")])
    annotations = {"boxes": {"column": "box"}}
    notes: list[str] = []
    (boxes,) = region_counts(folder, rows, annotations, notes)
    assert boxes.keep == 1
    assert notes == ["1 of 2 parts have no metadata: their boxes and masks are not counted"]
    folder.write_new("part-b/metadata.parquet", b"no parquet")
    with pytest.raises(StorageError, match=r"part-b/metadata\.parquet is damaged"):
        region_counts(folder, rows, annotations, notes)


def test_without_annotations_no_metadata_is_read(folder: Folder) -> None:
    folder.write_new("part-a/metadata.parquet", b"no parquet")
    assert region_counts(folder, outcomes_table([accepted(1)]), {}, []) == ()


def test_rejected_edits_are_in_no_part(folder: Folder) -> None:
    outcome = accepted(1).key.rejected(RejectReason.NO_CHANGE, unet_rows=1.0, seconds=0.1)
    notes: list[str] = []
    annotations = {"boxes": {"column": "box"}}
    (boxes,) = region_counts(folder, outcomes_table([outcome]), annotations, notes)
    assert (boxes.total, notes) == (0, [])

"""Three runs side by side: matched like two, figures of what all of them have."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fpe_core.judging.rules import RejectReason
from pipeline.ledger.outcome import EditKey, EditOutcome
from pipeline.report.side_by_side import read_side_by_side
from pipeline.storage.folder import Folder
from tests.builders.judged_run import accepted, labelled_job, rejected, write_run
from tests.servers.stores import Store, store_on_disk

EDITS = 6


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return store_on_disk(tmp_path / "store")


@pytest.fixture
def image(picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]) -> bytes:
    return png(picture())


def outcomes(shift: float, rejects: int) -> Callable[[int, EditKey], EditOutcome]:
    """Of all edits; the first `rejects` are rejected, and their score is lower by `shift`."""

    def outcome(number: int, key: EditKey) -> EditOutcome:
        if number < rejects:
            return rejected(
                number,
                key,
                RejectReason.WRONG_DIRECTION,
                changed_share=0.1,
                directional_similarity=0.6 - shift,
            )
        return accepted(number, key, changed_share=0.1, directional_similarity=0.6)

    return outcome


def write_three(store: Store, checkpoint: Path, image: bytes) -> list[Folder]:
    first = labelled_job(store, str(checkpoint), name="a")
    jobs = [first] + [
        labelled_job(
            store, str(checkpoint), name=name, manifest=first.manifest, edit={"guidance_scale": g}
        )
        for name, g in (("b", 2.0), ("c", 4.0))
    ]
    for job, rejects in zip(jobs, (0, 2, 3), strict=True):
        write_run(job, image, outcomes(0.3, rejects))
    return [Folder.open(job.output, job.storage_options) for job in jobs]


def test_figures_are_of_the_edits_that_all_have(
    disk: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    folders = write_three(disk, tiny_checkpoint, image)
    facts = read_side_by_side(folders)
    assert facts.common == EDITS
    assert [run.name for run in facts.runs] == ["A", "B", "C"]
    assert [run.counts.accepted for run in facts.runs] == [6, 4, 3]
    assert [run.counts.rejected for run in facts.runs] == [0, 2, 3]
    assert facts.scored["directional_similarity"] == EDITS
    means = [run.scores["directional_similarity"] for run in facts.runs]
    assert means == pytest.approx([0.6, 0.6 - 0.3 * 2 / 6, 0.6 - 0.3 * 3 / 6])
    assert len(facts.rows) == EDITS
    for row in facts.rows:
        assert len({(edit.target_prompt, edit.row_id) for edit in row.edits}) == 1
        assert len({edit.edit_id for edit in row.edits}) == 3
        assert row.source_picture.data
        assert all(picture.data for picture in row.pictures)


def test_an_edit_that_one_lacks_is_left_out(
    disk: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    a, b, _ = write_three(disk, tiny_checkpoint, image)
    prompts = {
        "target": "a {colour} {shape}",
        "source": "a {shape}",
        "labels": {"colour": ["red", "green"]},
    }
    other = labelled_job(disk, str(tiny_checkpoint), name="d", prompts=prompts)
    write_run(other, image, outcomes(0.0, 0))
    facts = read_side_by_side([a, b, Folder.open(other.output, other.storage_options)])
    assert [run.edits for run in facts.runs] == [EDITS] * 3
    assert facts.common == sum(run.counts.total for run in facts.runs) / 3 == EDITS / 2
    assert {edit.labels["colour"] for row in facts.rows for edit in row.edits} == {"red"}


def test_runs_without_a_common_edit_have_no_figures(
    disk: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    a, b, _ = write_three(disk, tiny_checkpoint, image)
    prompts = {"target": "a {colour} {shape}", "labels": {"colour": ["mauve"]}}
    other = labelled_job(disk, str(tiny_checkpoint), name="e", prompts=prompts)
    write_run(other, image, outcomes(0.0, 0))
    facts = read_side_by_side([a, b, Folder.open(other.output, other.storage_options)])
    assert (facts.common, facts.rows, facts.scored) == (0, (), {})
    assert all(math.isnan(run.rows_per_edit) for run in facts.runs)

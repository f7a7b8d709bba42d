"""A run on Ray with another editor: masks and words reach the workers, and what cannot be made
stops nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import plan_job, run_job
from pipeline.errors import JobError, ManifestError
from pipeline.job.job import Job
from pipeline.plan.resolved_job import resolve_job
from pipeline.verify.verify import verify_run
from tests.builders.tiny_checkpoint import SIZE_PX, build_tiny_checkpoint, write_defaults

pytestmark = pytest.mark.usefixtures("ray_cluster")
SOURCES = 3


def test_masks_and_words_of_the_manifest_reach_the_workers(
    tmp_path: Path,
    tiny_checkpoint: Path,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> None:
    edited = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    edited[: SIZE_PX // 2] = 255
    mask = png(Image.fromarray(edited))
    columns: dict[str, Any] = {
        "image": [png(picture(n)) for n in range(SOURCES)],
        "source_prompt": ["a red cup"] * SOURCES,
        "target_prompt": [["a blue cup", "a green cup"]] * SOURCES,
        "edit_mask": pa.array([mask, mask, None], pa.binary()),
        "blend_words": [[["red cup", "blue cup"], None], None, [["red cup", "tall vase"]] * 2],
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    for editor, lacking in (("p2p", 2), ("blended", 2)):
        job = Job.model_validate(
            {
                "manifest": str(tmp_path / "m.parquet"),
                "output": str(tmp_path / editor),
                "model": {"checkpoint": str(tiny_checkpoint)},
                "editor": editor,
                "edit": {"steps": 2},
                "failures": {"max_in_a_row": 1},
            }
        )
        summary = run_job(job)
        made = 2 * SOURCES - lacking
        assert (summary.accepted, summary.failed, summary.not_applicable) == (made, 0, lacking)
        found = verify_run(job)
        assert (found.ok, found.accepted, found.not_applicable, found.pending) == (
            True,
            made,
            lacking,
            0,
        )
        again = run_job(job)
        assert (again.edits_made, again.already_done) == (0, 2 * SOURCES)


def test_instructions_are_read_by_the_editor_that_reads_them(
    tmp_path: Path,
    tiny_checkpoint: Path,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> None:
    """One manifest for both kinds of editors; a row without the right prompt is not applicable."""
    instructed = build_tiny_checkpoint(tmp_path / "instruct", sees_source=True)
    write_defaults(instructed, steps=2, size_px=SIZE_PX, editor={"name": "instruct_pix2pix"})
    told = [["make it blue", "make it green"], "turn it into a dog", None, ""]
    shown = [None, ["a dog", "a cat"], "a blue cup", "a red cup"]
    columns: dict[str, Any] = {
        "image": [png(picture(n)) for n in range(4)],
        "instruction": pa.array(
            [[each] if isinstance(each, str) else each for each in told], pa.list_(pa.string())
        ),
        "target_prompt": pa.array(
            [[each] if isinstance(each, str) else each for each in shown], pa.list_(pa.string())
        ),
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    cases = [
        (
            "instruct_pix2pix",
            instructed,
            ["make it blue", "make it green", "turn it into a dog"],
            2,
        ),
        ("ddim", tiny_checkpoint, ["a dog", "a cat", "a blue cup", "a red cup"], 1),
    ]
    for editor, checkpoint, expected, lacking in cases:
        job = Job.model_validate(
            {
                "manifest": str(tmp_path / "m.parquet"),
                "output": str(tmp_path / editor),
                "model": {"checkpoint": str(checkpoint)},
                "editor": editor,
                "edit": {"steps": 2},
            }
        )
        plan = plan_job(job)
        assert plan.edits_not_applicable == lacking
        reason = "no instruction" if editor == "instruct_pix2pix" else "no target prompt"
        assert reason in plan.first_not_applicable
        summary = run_job(job)
        assert (summary.accepted, summary.failed, summary.not_applicable) == (
            len(expected),
            0,
            lacking,
        )
        made = [
            row
            for part in (tmp_path / editor).glob("part-*/metadata.parquet")
            for row in pq.read_table(part).to_pylist()
        ]
        assert sorted(row["target_prompt"] for row in made) == sorted(expected)
        assert all(row["editor"] == editor for row in made)
        assert verify_run(job).ok


@pytest.mark.parametrize(
    ("editor", "column", "message"),
    [
        ("instruct_pix2pix", "target_prompt", "needs a column instruction .there is target_prompt"),
        ("ddim", "instruction", "needs a column target_prompt .there is instruction"),
    ],
)
def test_a_manifest_without_the_editors_prompts_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, editor: str, column: str, message: str
) -> None:
    pq.write_table(pa.table({"image": ["a.png"], column: ["x"]}), tmp_path / "m.parquet")
    job = Job.model_validate(
        {
            "manifest": str(tmp_path / "m.parquet"),
            "output": str(tmp_path / "out"),
            "model": {"checkpoint": str(tiny_checkpoint)},
            "editor": editor,
        }
    )
    with pytest.raises(ManifestError) as found:
        resolve_job(job)
    assert re.search(message, "\n".join([str(found.value), *found.value.problems]))


@pytest.mark.parametrize(
    ("editor", "sees_source", "message"),
    [
        ("instruct_pix2pix", False, "needs a UNet of eight input channels"),
        ("ddim", True, "ddim cannot edit with it"),
        ("fpe", True, "fpe cannot edit with it"),
    ],
)
def test_a_checkpoint_of_the_other_kind_is_refused_before_anything_runs(
    tmp_path: Path, tiny_checkpoint: Path, editor: str, sees_source: bool, message: str
) -> None:
    """By what the job resolves to, in the plan as in the run."""
    checkpoint = tiny_checkpoint
    if sees_source:
        checkpoint = build_tiny_checkpoint(tmp_path / "instruct", sees_source=True)
    columns = {"image": ["a.png"], "instruction": ["make it red"], "target_prompt": ["a dog"]}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    job = Job.model_validate(
        {
            "manifest": str(tmp_path / "m.parquet"),
            "output": str(tmp_path / "out"),
            "model": {"checkpoint": str(checkpoint)},
            "editor": editor,
        }
    )
    with pytest.raises(JobError, match=message):
        resolve_job(job)

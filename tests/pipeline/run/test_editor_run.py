"""A run on Ray with another editor: masks and words reach the workers, and what cannot be made
stops nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import run_job
from pipeline.job.job import Job
from pipeline.verify.verify import verify_run
from tests.builders.tiny_checkpoint import SIZE_PX

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

"""A small manifest with everything that any method can use, and jobs on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.job.job import Job
from tests.builders.tiny_checkpoint import SIZE_PX

PROMPTS = ["a blue cup", "a green cup"]


@pytest.fixture
def columns(picture: Callable[..., Image.Image], png: Callable[..., bytes]) -> dict[str, Any]:
    """Two rows with a prompt; the first has everything that any method can use."""
    edited = np.zeros((SIZE_PX, SIZE_PX), np.uint8)
    edited[16:40, 16:40] = 255
    return {
        "image": [png(picture(n)) for n in range(2)],
        "source_prompt": ["a red cup", "a red cup"],
        "target_prompt": [PROMPTS, PROMPTS],
        "edit_mask": pa.array([png(Image.fromarray(edited)), None], pa.binary()),
        "blend_words": [[["red cup", "blue cup"], ["red cup", "green cup"]], None],
    }


@pytest.fixture
def make_job(tmp_path: Path, tiny_checkpoint: Path) -> Callable[..., Job]:
    def make(columns: dict[str, Any], editor: Any, **edit: Any) -> Job:
        file = tmp_path / "manifest.parquet"
        pq.write_table(pa.table(columns), file)
        return Job.model_validate(
            {
                "manifest": str(file),
                "output": str(tmp_path / "run"),
                "model": {"checkpoint": str(tiny_checkpoint)},
                "editor": editor,
                "edit": {"steps": 4, **edit},
            }
        )

    return make

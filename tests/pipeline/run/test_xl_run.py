"""Runs on Ray with Stable Diffusion XL, long prompts in windows, and text layers left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fpe_core import Editor, load_checkpoint
from pipeline import run_job
from pipeline.errors import JobError
from pipeline.job.job import Job
from pipeline.plan.resolved_job import resolve_job
from pipeline.verify.recompute import recompute_sample
from pipeline.verify.verify import verify_run
from tests.builders.tiny_checkpoint import build_tiny_xl

SIZES = ((64, 64), (120, 48), (48, 96))
LONG = "the red cat in snow " * 22 + "the dog"


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture
def job_of(tmp_path: Path, xl: Path, picture: Callable[..., Image.Image]) -> Callable[..., Job]:
    """A job of three pictures of different sizes, with these keys of `model:`."""
    for number, size in enumerate(SIZES):
        picture().resize(size).save(tmp_path / f"{number}.png")
    rows = range(len(SIZES))
    columns = {
        "image": [f"{number}.png" for number in rows],
        "source_prompt": ["the cat"] * len(SIZES),
        "target_prompt": [LONG] * len(SIZES),
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")

    def make(output: str, editor: str = "fpe", **model: Any) -> Job:
        return Job.model_validate(
            {
                "manifest": str(tmp_path / "m.parquet"),
                "output": str(tmp_path / output),
                "model": {"checkpoint": str(xl), "device": "cpu", **model},
                "edit": {"steps": 3},
                "editor": editor,
                "resources": {"inversions": str(tmp_path / "inversions")},
            }
        )

    return make


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_tells_the_model_every_picture_s_size(
    job_of: Callable[..., Job], xl: Path, tmp_path: Path
) -> None:
    """Edits equal the editor's on the pictures as they are; the other run's inversions serve."""
    settings = {"clip_skip": 1, "long_prompts": "windows"}
    job = job_of("run", **settings)
    summary = run_job(job)
    assert (summary.accepted, summary.failed) == (3, 0)
    assert verify_run(job).ok
    again = recompute_sample(job, 1)
    assert (again.compared, again.ok) == (1, True)
    checkpoint = load_checkpoint(xl, device="cpu", **settings)
    parameters = resolve_job(job).parameters
    editor = Editor(checkpoint)
    pictures = [Image.open(tmp_path / f"{number}.png") for number in range(len(SIZES))]
    inversion = editor.invert(pictures, ["the cat"] * len(SIZES), parameters)
    expected = editor.edit(inversion, [[LONG]] * len(SIZES)).edits
    made = {
        (row["fit_source_width_px"], row["fit_source_height_px"]): row for row in _metadata(job)
    }
    for size, edits in zip(SIZES, expected, strict=True):
        (path,) = Path(job.output).glob(f"part-*/edited/*{made[size]['edit_id']}.png")
        off = np.asarray(Image.open(path), np.int16) - np.asarray(edits[0].image, np.int16)
        assert np.abs(off).max() <= 1, size
        assert made[size]["checkpoint_fingerprint"] == checkpoint.fingerprint
    card = (Path(job.output) / "README.md").read_text()
    assert "`clip_skip: 1`, `long_prompts: windows`" in card
    assert len(list((tmp_path / "inversions").rglob("*.safetensors"))) == len(SIZES)


def _metadata(job: Job) -> list[dict[str, Any]]:
    return [
        row
        for path in Path(job.output).glob("part-*/metadata.parquet")
        for row in pq.read_table(path).to_pylist()
    ]


def test_settings_of_the_text_encoders_are_part_of_the_ids(job_of: Callable[..., Job]) -> None:
    """And a job without any has the ids that it had before there were such keys."""
    jobs = {
        "none": {},
        "usual": {"clip_skip": 0, "long_prompts": "truncate"},
        "skip": {"clip_skip": 1},
        "windows": {"long_prompts": "windows"},
    }
    ids = {
        name: tuple(resolve_job(job_of("run", **keys)).edit_ids()) for name, keys in jobs.items()
    }
    assert ids["none"] == ids["usual"]
    assert len(set(ids.values())) == 3


@pytest.mark.parametrize(
    ("editor", "model", "message"),
    [
        ("shape_guided", {}, "does not edit with Stable Diffusion XL"),
        ("pix2pix_zero", {}, "does not edit with Stable Diffusion XL"),
        ("p2p", {"long_prompts": "windows"}, "long prompts in windows are not for p2p"),
        ("fpe", {"clip_skip": 2}, "clip_skip must be at most 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    job_of: Callable[..., Job], editor: str, model: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=message):
        run_job(job_of("refused", editor, **model))
    assert not list((tmp_path / "refused").glob("part-*"))

"""Inversions that jobs of several editors share: which rows they save, and what may go wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from fpe_core import Editor, EditParameters, Pix2PixZero, load_checkpoint
from fpe_core.agreement import LATENT_TOLERANCE, latent_distance
from pipeline.edit.kept_inversions import KeptInversions
from pipeline.edit.phase_clock import ClockedEditor
from pipeline.job.job import Job
from pipeline.storage.folder import Folder
from tests.pipeline.edit.test_editors import run

MakeJob = Callable[..., Job]
PARAMETERS = EditParameters(steps=4, width_px=64, height_px=64)


@pytest.fixture
def editor(tiny_checkpoint: Path) -> ClockedEditor:
    return ClockedEditor(Editor(load_checkpoint(str(tiny_checkpoint), device="cpu")))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "inversions"


def files(kept: Path) -> list[Path]:
    return sorted(kept.rglob("*.safetensors"))


def test_jobs_of_several_editors_invert_a_source_once(
    make_job: MakeJob, columns: dict[str, Any], tmp_path: Path, kept: Path
) -> None:
    """Two sources of four steps each: eight rows less for every editor but the first."""
    saved = {}
    for editor in ("fpe", "ddim", "pnp", "diffedit", "masactrl"):
        job = make_job(columns, editor)
        resources = job.resources.model_copy(update={"inversions": str(kept)})
        job = job.model_copy(update={"output": str(tmp_path / editor), "resources": resources})
        plan, counts = run(job)
        assert counts.accepted == 4
        saved[editor] = plan.unet_rows - counts.unet_rows
    # DiffEdit needs three of the four levels.
    assert saved == {"fpe": 0, "ddim": 8, "pnp": 8, "diffedit": 6, "masactrl": 8}
    assert len(files(kept)) == 2


def test_edits_are_those_of_an_inversion_of_ones_own(
    editor: ClockedEditor, kept: Path, picture: Callable[..., Image.Image]
) -> None:
    """Some sources are there and others are not, in any order."""
    shared = KeptInversions(editor, Folder.open(str(kept)))
    images = [picture(n).resize((64, 64)) for n in range(4)]
    prompts = ["a cup", "", "a red cup", "a cup"]
    shared.invert([images[1], images[2]], [prompts[1], prompts[2]], PARAMETERS)
    before = editor.unet_rows
    mixed = shared.invert(images, prompts, PARAMETERS)
    assert editor.unet_rows - before == mixed.unet_rows == 2 * 4
    own = editor.invert(images, prompts, PARAMETERS)
    assert mixed.trajectory.shape == own.trajectory.shape
    for made, expected in zip(mixed.trajectory, own.trajectory, strict=True):
        assert latent_distance(made, expected) <= LATENT_TOLERANCE[made.dtype]
    for name in ("fits", "source_prompts", "diverged", "truncated_prompts", "parameters"):
        assert getattr(mixed, name) == getattr(own, name)
    assert [each.tobytes() for each in mixed.images] == [each.tobytes() for each in own.images]
    again = shared.invert(images, prompts, PARAMETERS)
    assert again.unet_rows == 0
    assert bool((again.trajectory == mixed.trajectory).all()), "as exact as they were"


def test_a_file_is_named_by_all_that_a_trajectory_depends_on(
    editor: ClockedEditor, kept: Path, picture: Callable[..., Image.Image]
) -> None:
    shared = KeptInversions(editor, Folder.open(str(kept)))
    image = picture(0).resize((64, 64))
    other = image.copy()
    other.putpixel((3, 3), (1, 2, 3))
    shared.invert([image], ["a cup"], PARAMETERS)
    rows = [
        shared.invert([one], [prompt], parameters).unet_rows
        for one, prompt, parameters in (
            (other, "a cup", PARAMETERS),
            (image, "a vase", PARAMETERS),
            (image, "a cup", EditParameters(steps=5, width_px=64, height_px=64)),
            (image, "a cup", EditParameters(steps=4, width_px=64, height_px=64, guidance_scale=2)),
            (image, "a cup", PARAMETERS.edited_by(Pix2PixZero())),
            (image, "a cup", PARAMETERS.edited_by(Pix2PixZero(0.2))),
        )
    ]
    assert rows == [4, 4, 5, 0, 4, 0], "a regularised one is another, whatever its edits"


@pytest.mark.parametrize("damage", ["short", "empty", "other"])
def test_a_damaged_file_is_inverted_again(
    editor: ClockedEditor,
    kept: Path,
    picture: Callable[..., Image.Image],
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    shared = KeptInversions(editor, Folder.open(str(kept)))
    image = picture(0).resize((64, 64))
    first = shared.invert([image], ["a cup"], PARAMETERS)
    (file,) = files(kept)
    whole = file.read_bytes()
    file.write_bytes({"short": whole[:-5], "empty": b"", "other": b"x" * 40}[damage])
    with caplog.at_level(logging.WARNING):
        again = shared.invert([image], ["a cup"], PARAMETERS)
    assert again.unet_rows == 4
    assert bool((again.trajectory == first.trajectory).all())
    assert ("cannot be used" in caplog.text) == (damage != "empty"), "an empty file is not there"
    assert shared.invert([image], ["a cup"], PARAMETERS).unet_rows == 0, "it is whole again"


def test_a_folder_that_cannot_be_written_costs_time_and_no_edit(
    editor: ClockedEditor,
    tmp_path: Path,
    picture: Callable[..., Image.Image],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("not a folder")
    shared = KeptInversions(editor, Folder.open(str(tmp_path / "file")))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made = shared.invert([picture(0).resize((64, 64))], ["a cup"], PARAMETERS)
            assert made.unet_rows == 4
    assert caplog.text.count("an inversion cannot be kept") == 1


def test_what_is_not_finite_is_not_kept(
    editor: ClockedEditor, kept: Path, picture: Callable[..., Image.Image]
) -> None:
    network = editor.checkpoint.unet.conv_out
    bias = network.bias.data.clone()
    network.bias.data[:] = np.nan
    try:
        shared = KeptInversions(editor, Folder.open(str(kept)))
        made = shared.invert([picture(0).resize((64, 64))], ["a cup"], PARAMETERS)
    finally:
        network.bias.data[:] = bias
    assert made.diverged == (True,)
    assert not files(kept)


def test_a_file_is_what_the_documentation_says(
    editor: ClockedEditor, kept: Path, picture: Callable[..., Image.Image]
) -> None:
    shared = KeptInversions(editor, Folder.open(str(kept)))
    made = shared.invert([picture(0).resize((64, 64))], ["a cup"], PARAMETERS)
    (file,) = files(kept)
    assert bool((load_file(file)["trajectory"] == made.trajectory[0]).all())


def test_a_place_in_the_output_is_refused(make_job: MakeJob, columns: dict[str, Any]) -> None:
    job = make_job(columns, "fpe")
    for inside in (job.output, f"{job.output}/inversions"):
        values = job.model_dump() | {"resources": {"inversions": inside}}
        with pytest.raises(ValueError, match=r"resources\.inversions .* lies in the output"):
            Job.model_validate(values)
    Job.model_validate(job.model_dump() | {"resources": {"inversions": f"{job.output}-inversions"}})
    with pytest.raises(ValueError, match="password"):
        Job.model_validate(job.model_dump() | {"resources": {"inversions": "s3://a:b@c/d"}})

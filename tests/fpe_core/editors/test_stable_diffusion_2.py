"""Stable Diffusion 2 in miniature: linear projections, heads by level, GELU, prediction of v.

All editors that need no weights of their own, against the naive reference; plain sampling against
diffusers' pipeline; and a model with zero terminal SNR.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from fpe_core import Checkpoint, DdimEditing, Editor, EditParameters, load_checkpoint
from fpe_core.checkpoint.check import check_files
from fpe_core.checkpoint.files import locate
from fpe_core.noise_levels import training_levels
from fpe_core.schedule import seeded_noise
from tests.builders.tiny_checkpoint import build_tiny_checkpoint
from tests.fpe_core.editors import (
    test_edit_friendly,
    test_masked_editors,
    test_p2p,
    test_pnp_and_masactrl,
    test_simple_editors,
)
from tests.fpe_core.editors.cases import SQUARE, WIDE, check_exact, check_rows, photos

EDITORS = {
    "fpe": test_simple_editors.fpe,
    "ddim": test_simple_editors.ddim,
    "sdedit": test_simple_editors.sdedit,
    "p2p": test_p2p.p2p,
    "pnp": test_pnp_and_masactrl.pnp,
    "masactrl": test_pnp_and_masactrl.masactrl,
    "diffedit": test_masked_editors.diffedit,
    "blended": test_masked_editors.blended,
    "edit friendly": test_edit_friendly.ddim,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_checkpoint(tmp_path_factory.mktemp("second"), is_second=True)


@pytest.fixture(scope="module")
def second(folder: Path) -> Checkpoint:
    check_files(
        folder, locate(folder, allow_pickle=False, revision=None), allow_pickle=False, config=None
    )
    return load_checkpoint(folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def second_float64(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device="cpu", dtype=torch.float64)


@pytest.mark.parametrize("name", EDITORS)
def test_edits_equal_the_reference(second_float64: Checkpoint, name: str) -> None:
    check_exact(second_float64, EDITORS[name]())


@pytest.mark.parametrize("size", [SQUARE, WIDE])
def test_edits_in_float32_equal_the_reference(second: Checkpoint, size: tuple[int, int]) -> None:
    check_exact(second, test_simple_editors.fpe(size), sources=[1])


def test_rows_are_those_of_stable_diffusion_1(second: Checkpoint) -> None:
    check_rows(second, test_simple_editors.fpe(), 3, {"R": 40})


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str
)
def test_plain_sampling_is_diffusers_pipeline(
    folder: Path, dtype: torch.dtype, tolerance: float
) -> None:
    """From the same noise, with diffusers' DDIM in float64 levels as ours are."""
    checkpoint = load_checkpoint(folder, device="cpu", dtype=dtype)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    exact = torch.from_numpy(training_levels(checkpoint.scheduler_config))
    pipeline.scheduler.alphas_cumprod = exact
    pipeline.scheduler.final_alpha_cumprod = exact[0]
    parameters = _plain()
    editor = Editor(checkpoint)
    made = editor.edit(
        editor.synthesise(["the cat in snow"], [3], parameters), [["the cat in snow"]]
    )
    noise = seeded_noise(3, (1, 4, 8, 8)).to(dtype)
    theirs = pipeline(
        "the cat in snow",
        negative_prompt="a car",
        num_inference_steps=5,
        guidance_scale=6.0,
        height=64,
        width=64,
        latents=noise,
        output_type="latent",
    ).images[0]
    ours = made.edits[0][0].latent
    assert float((ours - theirs).norm() / theirs.norm()) <= tolerance


def test_zero_terminal_snr_is_inverted_and_sampled(folder: Path, tmp_path: Path) -> None:
    """With levels that reach pure noise; unguided sampling comes back to the picture's latent."""
    zero = shutil.copytree(folder, tmp_path / "zero")
    config = json.loads((zero / "scheduler" / "scheduler_config.json").read_text())
    (zero / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({**config, "rescale_betas_zero_snr": True})
    )
    checkpoint = load_checkpoint(zero, device="cpu", dtype=torch.float64)
    assert training_levels(checkpoint.scheduler_config)[-1] == 0
    editor = Editor(checkpoint)
    parameters = replace(_plain(), steps=100, guidance_scale=1.0, negative_prompt="")
    inversion = editor.invert(photos(1, SQUARE), ["a car"], parameters)
    made = editor.edit(inversion, [["a car", "the cat"]]).edits[0]
    start = inversion.trajectory[0, 0]
    apart = [float((each.latent - start).norm() / start.norm()) for each in made]
    assert apart[0] < 0.1
    assert all(each.is_finite for each in made)


def _plain() -> EditParameters:
    return EditParameters(
        steps=5, guidance_scale=6.0, negative_prompt="a car", width_px=64, height_px=64
    ).edited_by(DdimEditing())


def test_the_cases_are_of_all_editors_without_weights_of_their_own() -> None:
    names = {make().method.name for make in EDITORS.values()}
    assert names == {"fpe", "ddim", "sdedit", "p2p", "pnp", "masactrl", "diffedit", "blended"}

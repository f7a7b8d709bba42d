"""The checkpoint in the package."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from fpe_core import checkpoint_defaults
from fpe_core.checkpoint.files import CHECKPOINT_DIR
from fpe_core.still_life import render, sample_scene
from fpe_core.still_life.benchmark.edits import FIRST_SEED
from fpe_core.still_life.render import as_pixels
from fpe_core.still_life.train.autoencoder import reconstruction_psnr_db

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def pipeline() -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(CHECKPOINT_DIR, safety_checker=None)
    return pipeline.to(torch.float32)


def test_it_is_small_and_holds_safetensors_only() -> None:
    files = [path for path in CHECKPOINT_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25 * MEBIBYTE
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}
    assert sum(path.suffix == ".safetensors" for path in files) == 3


def test_it_has_the_sixteen_self_attention_layers_of_stable_diffusion(pipeline: Any) -> None:
    layers = [name for name in pipeline.unet.attn_processors if ".attn1." in name]
    parts = [name.split("_blocks")[0].split("_block")[0] for name in layers]
    assert (parts.count("down"), parts.count("mid"), parts.count("up")) == (6, 1, 9)


def test_its_scheduler_is_that_of_stable_diffusion(pipeline: Any) -> None:
    config = pipeline.scheduler.config
    assert (config.beta_start, config.beta_end) == (0.00085, 0.012)
    assert (config.beta_schedule, config.prediction_type) == ("scaled_linear", "epsilon")
    assert (config.clip_sample, config.set_alpha_to_one, config.steps_offset) == (False, False, 1)


def test_its_latents_have_unit_scale(pipeline: Any) -> None:
    assert pipeline.vae.config.scaling_factor != pytest.approx(0.18215)
    assert _latents(pipeline, range(24)).std().item() == pytest.approx(1.0, abs=0.15)


def test_it_reconstructs_pictures_it_has_never_seen(pipeline: Any) -> None:
    assert reconstruction_psnr_db(pipeline.vae, range(100, 116)) > 30.0


def test_its_defaults_are_the_best_that_validation_tried() -> None:
    defaults = checkpoint_defaults(CHECKPOINT_DIR)
    assert (defaults.width_px, defaults.height_px) == (128, 128)
    record = json.loads((CHECKPOINT_DIR / "validation.json").read_text())
    assert record["first_seed"] == FIRST_SEED["validation"]
    best = max(record["tried"], key=lambda row: row["score"])
    assert (str(defaults.layers), defaults.replaced_fraction, defaults.guidance_scale) == (
        best["layers"],
        best["replaced_fraction"],
        best["guidance_scale"],
    )


def test_it_has_a_model_card() -> None:
    assert "held-out" in (CHECKPOINT_DIR / "README.md").read_text()


def test_it_samples_a_picture_from_a_caption(pipeline: Any) -> None:
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a poster of a red plain ball on a white background",
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images[0]
    assert image.shape == (3, 128, 128)
    corner, centre = image[:, :16, :16].mean((1, 2)), image[:, 56:72, 56:72].mean((1, 2))
    assert corner.min() > 0.7, "the wall is white"
    assert centre[0] > centre[1] + 0.2, "the ball is red"
    assert centre[0] > centre[2] + 0.2, "the ball is red"


def _latents(pipeline: Any, seeds: range) -> torch.Tensor:
    pixels = as_pixels(np.stack([np.asarray(render(sample_scene(seed))) for seed in seeds]))
    with torch.no_grad():
        means: torch.Tensor = pipeline.vae.encode(pixels).latent_dist.mean
    return means * pipeline.vae.config.scaling_factor

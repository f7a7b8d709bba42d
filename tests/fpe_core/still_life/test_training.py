"""Training: resuming after a kill, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fpe_core.still_life import sample_scene
from fpe_core.still_life.scene import PHRASINGS, caption
from fpe_core.still_life.train.architecture import build_autoencoder, build_tokenizer
from fpe_core.still_life.train.data import (
    FIRST_TRAINING_SEED,
    centre_latents,
    rendered,
    training_scenes,
)
from fpe_core.still_life.train.denoiser import tokenize_captions
from fpe_core.still_life.train.model import StageBudgets, train
from fpe_core.still_life.train.progress import Budget, Run


class KilledError(Exception):
    """What a kill looks like from inside the loop."""


def test_a_killed_run_goes_on_where_its_snapshot_was(tmp_path: Path) -> None:
    straight, _ = toy_run(tmp_path / "straight", steps=8)
    with pytest.raises(KilledError):
        toy_run(tmp_path / "killed", steps=8, kill_at=5)
    resumed, seen = toy_run(tmp_path / "killed", steps=8)
    assert seen == [5, 6, 7]
    assert torch.equal(resumed.weight, straight.weight)
    curve = json.loads((tmp_path / "killed" / "toy_curve.json").read_text())
    assert [point["step"] for point in curve] == list(range(8))


def test_a_finished_run_takes_no_further_step(tmp_path: Path) -> None:
    toy_run(tmp_path, steps=3)
    _, seen = toy_run(tmp_path, steps=3)
    assert seen == []
    _, seen = toy_run(tmp_path, steps=4)
    assert seen == [3]


def test_a_budget_of_seconds_counts_what_was_spent_before() -> None:
    budget = Budget(seconds=100.0, steps=1000)
    assert budget.spent(step=10, seconds=50.0) == 0.5
    assert budget.spent(step=900, seconds=50.0) == 0.9
    assert Budget().spent(step=10**9, seconds=1e9) == 0.0


def test_the_whole_training_resumes_stage_by_stage(tmp_path: Path) -> None:
    first = train(tmp_path, budgets(1), scene_count=16, compiled=False)
    assert (first["autoencoder"]["steps"], first["denoiser"]["steps"]) == (1, 1)
    weights = tmp_path / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    (tmp_path / "checkpoint" / "README.md").write_text("kept")

    second = train(tmp_path, budgets(2), scene_count=16, compiled=False)
    assert (second["autoencoder"]["steps"], second["denoiser"]["steps"]) == (1, 2)
    assert second["autoencoder"]["seconds"] == first["autoencoder"]["seconds"]
    assert second["denoiser"]["seconds"] > first["denoiser"]["seconds"]
    assert weights.read_bytes() != before
    assert (tmp_path / "checkpoint" / "README.md").read_text() == "kept"
    assert {path.name for path in tmp_path.glob("checkpoint*")} == {"checkpoint"}


def test_training_scenes_lie_beyond_the_held_out_seeds(tmp_path: Path) -> None:
    scenes = training_scenes(3)
    assert scenes[0] == sample_scene(FIRST_TRAINING_SEED)
    assert not set(training_scenes(200)) & {sample_scene(seed) for seed in range(200)}
    images = rendered(tmp_path, scenes)
    assert (images.shape, images.dtype) == ((3, 128, 128, 3), np.uint8)


def test_centring_changes_latents_but_not_pictures() -> None:
    """In float64: the error of float32 depends on the processor, 1e-5 on one, 2e-5 on another."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder().eval().double()
    pixels = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 2 - 1
    mean = torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=torch.float64)
    gain = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        before = autoencoder.encode(pixels).latent_dist
        decoded = autoencoder.decode(before.mean).sample
        centre_latents(autoencoder, mean, gain)
        after = autoencoder.encode(pixels).latent_dist
        again = autoencoder.decode(after.mean).sample
    shape = (-1, 1, 1)
    expected = (before.mean - mean.view(shape)) * gain.view(shape)
    torch.testing.assert_close(after.mean, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(after.std, before.std * gain.view(shape), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(again, decoded, atol=1e-12, rtol=1e-12)


def test_every_scene_has_all_its_captions_and_the_last_row_none(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    scenes = training_scenes(3)
    ids = tokenize_captions(tokenizer, scenes)
    assert ids.shape == (4, len(PHRASINGS), 32)
    text = tokenizer.decode(ids[1, 4], skip_special_tokens=True)
    assert text.strip() == caption(scenes[1], 4)
    assert (ids[3, :, 1:] == tokenizer.eos_token_id).all()


def budgets(denoiser_steps: int) -> StageBudgets:
    return StageBudgets(Budget(steps=1), Budget(steps=1), Budget(steps=denoiser_steps))


def toy_run(
    folder: Path, *, steps: int, kill_at: int | None = None
) -> tuple[torch.nn.Linear, list[int]]:
    """A regression on noise, snapshot at every step; returns the layer and the steps it saw."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    state = {"layer": layer}
    run = Run("toy", folder, Budget(steps=steps), optimizer, 0.1, state, snapshot_every_s=0.0)
    seen = []
    for step in run.steps():
        if step == kill_at:
            raise KilledError
        seen.append(step)
        torch.manual_seed(step)
        loss = layer(torch.randn(4, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.record(loss=float(loss.detach()))
    return layer, seen

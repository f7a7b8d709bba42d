"""The training of the model with instructions: its pairs, its UNet, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from fpe_core import InstructPix2Pix, checkpoint_defaults, load_checkpoint
from fpe_core.checkpoint.files import CHECKPOINT_DIR, INSTRUCT_DIR
from fpe_core.still_life import render, sample_scene
from fpe_core.still_life.benchmark.edits import edits_of_scene
from fpe_core.still_life.instructions import instruction
from fpe_core.still_life.render import as_pixels
from fpe_core.still_life.scene import FACTORS
from fpe_core.still_life.train.choose_instruct import ScaleGrid, choose_scales
from fpe_core.still_life.train.data import FIRST_TRAINING_SEED
from fpe_core.still_life.train.instruct import train, widened
from fpe_core.still_life.train.instruct_data import GROUP, Pairs, encoded_texts, training_pairs
from fpe_core.still_life.train.progress import Budget


@pytest.fixture(scope="module")
def parts() -> tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer]:
    return (
        AutoencoderKL.from_pretrained(CHECKPOINT_DIR / "vae", torch_dtype=torch.float32).eval(),
        CLIPTextModel.from_pretrained(CHECKPOINT_DIR / "text_encoder", dtype=torch.float32).eval(),
        CLIPTokenizer.from_pretrained(CHECKPOINT_DIR / "tokenizer"),
    )


@pytest.fixture(scope="module")
def pairs(
    parts: tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Pairs:
    return training_pairs(3, *parts, tmp_path_factory.mktemp("pairs"))


def test_a_pair_is_a_scene_its_edit_and_what_asks_for_it(
    pairs: Pairs, parts: tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer]
) -> None:
    """Both ways round, of scenes that no benchmark has."""
    assert len(pairs) == 3 * 10
    assert pairs.latents.shape == (3 * GROUP, 4, 16, 16)
    autoencoder, text_encoder, tokenizer = parts
    edit = edits_of_scene(FIRST_TRAINING_SEED + 2)[3]
    there, back = 2 * 10 + 2 * 3, 2 * 10 + 2 * 3 + 1
    for pair, before, after, scenes in (
        (there, edit.source, edit.answer, (edit.source, edit.target_value)),
        (back, edit.answer, edit.source, (edit.answer, edit.source_value)),
    ):
        for picture, scene in ((pairs.source[pair], before), (pairs.target[pair], after)):
            pixels = as_pixels(np.asarray(render(scene, 128))[None])
            with torch.no_grad():
                mode = autoencoder.encode(pixels).latent_dist.mode()[0]
            assert torch.allclose(pairs.latents[picture], mode, atol=1e-3)
        source, target = scenes
        for phrasing in range(4):
            text = instruction(source, edit.factor, target, phrasing)
            hidden = encoded_texts(text_encoder, tokenizer, [text])[0]
            assert torch.allclose(
                pairs.hidden[pairs.sentence[pair, phrasing]], hidden, atol=1e-4
            ), text
    assert torch.allclose(
        pairs.hidden[0], encoded_texts(text_encoder, tokenizer, [""])[0], atol=1e-4
    )


def test_the_wider_unet_starts_as_the_first_one() -> None:
    """Whatever the source is; then the weights that see it can learn."""
    first = UNet2DConditionModel.from_pretrained(CHECKPOINT_DIR / "unet", torch_dtype=torch.float32)
    wide = widened(first)
    assert wide.config.in_channels == 8
    torch.manual_seed(0)
    latents, source, text = (
        torch.randn(2, *shape) for shape in ((4, 16, 16), (4, 16, 16), (32, 128))
    )
    expected = first(latents, 500, text).sample
    made = wide(torch.cat([latents, source], dim=1), 500, text).sample
    assert torch.allclose(made, expected, atol=1e-5)
    made.square().mean().backward()
    assert wide.conv_in.weight.grad[:, 4:].abs().max() > 0


def test_shapes_are_drawn_most_often(pairs: Pairs) -> None:
    """A step's pairs follow these chances; all pairs of a factor have the same."""
    factors = list(FACTORS)
    of_pair = [factors[pair // 2 % len(factors)] for pair in range(len(pairs))]
    each = {
        factor: {pairs.chance[n] for n, f in enumerate(of_pair) if f == factor}
        for factor in factors
    }
    assert all(len(chances) == 1 for chances in each.values())
    assert pairs.chance.sum() == pytest.approx(1.0)
    most = max(factors, key=lambda factor: max(each[factor]))
    assert most == "shape"
    assert max(each["shape"]) == pytest.approx(3 * max(each["colour"]))


def test_it_starts_with_the_weights_of_an_earlier_training(tmp_path: Path) -> None:
    """Whose UNet has the further channels already; nothing of it is widened again."""
    first = UNet2DConditionModel.from_pretrained(INSTRUCT_DIR / "unet", torch_dtype=torch.float32)
    assert widened(first) is first
    unet = INSTRUCT_DIR / "unet"
    train(tmp_path, Budget(steps=1), first_unet=unet, groups=2, compiled=False)
    own, theirs = (
        load_file(next(folder.glob("*.safetensors")))
        for folder in (tmp_path / "checkpoint" / "unet", unet)
    )
    apart = max(float((own[name] - theirs[name]).abs().max()) for name in theirs)
    assert apart < 1e-3, "the average moves by a share of one step"


def test_the_training_goes_on_and_its_export_loads(tmp_path: Path) -> None:
    first = train(tmp_path, Budget(steps=1), groups=2, compiled=False)
    assert (first["steps"], first["pairs"], first["first_training_seed"]) == (1, 20, 1_000_000)
    folder = tmp_path / "checkpoint"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    (folder / "README.md").write_text("kept")
    second = train(tmp_path, Budget(steps=3), groups=2, compiled=False)
    assert (second["steps"], second["seconds"] > first["seconds"]) == (3, True)
    assert weights.read_bytes() != before
    assert (folder / "README.md").read_text() == "kept"
    checkpoint = load_checkpoint(folder, device="cpu", dtype="float32")
    assert checkpoint.sees_source
    assert "_name_or_path" not in (folder / "unet" / "config.json").read_text(), (
        "no machine's folder"
    )
    assert isinstance(checkpoint.default_parameters.method, InstructPix2Pix)
    StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, safety_checker=None)
    for part in ("vae", "text_encoder"):
        (own,) = folder.glob(f"{part}/*.safetensors")
        assert own.read_bytes() == (CHECKPOINT_DIR / part / own.name).read_bytes()

    chosen = choose_scales(folder, scenes=1, test_scenes=1, grid=ScaleGrid((1.0, 3.0), (1.5,)))
    assert checkpoint_defaults(folder) == chosen
    tried = json.loads((folder / "validation.json").read_text())
    assert (tried["first_seed"], len(tried["tried"])) == (3000, 2)
    assert chosen.guidance_scale == tried["tried"][0]["guidance_scale"]
    held_out = json.loads((folder / "training.json").read_text())["held_out"]
    assert (held_out["first_seed"], held_out["scenes"]) == (2000, 1)
    assert 0 <= held_out["colour"]["success"] <= 1


def test_no_training_pair_is_of_a_benchmark_scene() -> None:
    scenes = {sample_scene(seed) for seed in (*range(2_000, 2_100), *range(3_000, 3_100))}
    trained = {edits_of_scene(FIRST_TRAINING_SEED + number)[0].source for number in range(200)}
    assert not scenes & trained

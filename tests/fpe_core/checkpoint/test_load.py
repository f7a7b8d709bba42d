"""Every kind of source loads, and anything else gives a clear error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fpe_core import (
    CheckpointError,
    Editor,
    EditParameters,
    LayersByRange,
    checkpoint_defaults,
    checkpoint_fingerprint,
    load_checkpoint,
)
from tests.builders.single_file import write_single_file
from tests.builders.tiny_checkpoint import build_tiny_checkpoint

FEW_STEPS = EditParameters(steps=2, width_px=64, height_px=64)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


def edited(checkpoint) -> torch.Tensor:
    editor = Editor(checkpoint)
    sources = editor.synthesise(["a cat"], [1], FEW_STEPS)
    return editor.edit(sources, [["a dog"]]).edits[0][0].latent


def test_a_folder(tiny_folder):
    checkpoint = load_checkpoint(tiny_folder, device="cpu")
    assert checkpoint.dtype == torch.float32
    assert checkpoint.vae_factor == 8
    assert not checkpoint.unet.training
    assert not any(p.requires_grad for p in checkpoint.unet.parameters())
    assert checkpoint.fingerprint == checkpoint_fingerprint(tiny_folder)
    assert edited(checkpoint).isfinite().all()


def test_a_single_file_is_the_same_model(tiny_folder, tmp_path):
    single = write_single_file(tiny_folder, tmp_path / "model.safetensors")
    checkpoint = load_checkpoint(single, device="cpu", config=tiny_folder)
    expected = edited(load_checkpoint(tiny_folder, device="cpu"))
    # The weights are equal, but not their memory layout, and kernels round differently.
    assert torch.allclose(edited(checkpoint), expected, atol=1e-4)
    assert checkpoint.fingerprint == checkpoint_fingerprint(single, config=tiny_folder)
    assert checkpoint.fingerprint != checkpoint_fingerprint(single), "configs are part of it"


def test_a_hub_id_from_the_local_cache(tiny_folder, tmp_path, monkeypatch):
    """What the hub's client left in its cache loads by name, without a network."""
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--somebody--tiny-sd"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("diffusers.utils.constants.HF_MODULES_CACHE", str(tmp_path))
    checkpoint = load_checkpoint("somebody/tiny-sd", device="cpu")
    assert checkpoint.fingerprint == checkpoint_fingerprint(tiny_folder)


def test_the_built_in_model():
    checkpoint = load_checkpoint("builtin:still-life", device="cpu")
    assert checkpoint.default_parameters == checkpoint_defaults("builtin:still-life")
    assert checkpoint.default_parameters.width_px == 128
    assert checkpoint.unet.config.sample_size * checkpoint.vae_factor == 128


def test_half_precision_variants_are_found(folder):
    for weights in folder.glob("*/*.safetensors"):
        weights.rename(weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))
    assert edited(load_checkpoint(folder, device="cpu")).isfinite().all()


def test_dtype_and_device_can_be_chosen(tiny_folder):
    checkpoint = load_checkpoint(tiny_folder, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in checkpoint.unet.parameters()} == {torch.bfloat16}
    assert load_checkpoint(tiny_folder, device="cpu", dtype="float64").dtype == torch.float64
    with pytest.raises(CheckpointError, match="unknown dtype 'int8'; allowed: auto, float32"):
        load_checkpoint(tiny_folder, dtype="int8")
    with pytest.raises(CheckpointError, match="torch sees no device 'cuda:99'"):
        load_checkpoint(tiny_folder, device="cuda:99")
    with pytest.raises(CheckpointError, match="unknown device 'gpu'"):
        load_checkpoint(tiny_folder, device="gpu")


def test_fingerprints_follow_content_not_place(tiny_folder, folder, tmp_path):
    assert checkpoint_fingerprint(folder) == checkpoint_fingerprint(tiny_folder)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.bias"] += 1
    save_file(tensors, weights)
    assert checkpoint_fingerprint(folder) != checkpoint_fingerprint(tiny_folder)
    other = build_tiny_checkpoint(tmp_path / "other", seed=1)
    assert checkpoint_fingerprint(other) != checkpoint_fingerprint(tiny_folder)


def test_recommended_parameters_travel_with_the_checkpoint(folder):
    assert checkpoint_defaults(folder) == EditParameters(width_px=64, height_px=64)
    values = {"size_px": 96, "steps": 25, "guidance_scale": 5.0, "replaced_fraction": 0.7}
    values["layers"] = {"first": 3, "last": 13}
    (folder / "fpe_defaults.json").write_text(json.dumps(values))
    recommended = checkpoint_defaults(folder)
    assert recommended == EditParameters(25, 5.0, "", LayersByRange(3, 13), 0.7, 96, 96)
    assert load_checkpoint(folder, device="cpu").default_parameters == recommended
    (folder / "fpe_defaults.json").write_text('{"steps": 0}')
    with pytest.raises(CheckpointError, match="holds no edit parameters"):
        checkpoint_defaults(folder)


def test_pickles_are_refused_unless_allowed(folder):
    for component, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        weights = next((folder / component).glob("*.safetensors"))
        pickled = "pytorch_model" if name == "model" else name
        torch.save(load_file(weights), folder / component / f"{pickled}.bin")
        weights.unlink()
    with pytest.raises(CheckpointError, match="only with allow_pickle"):
        load_checkpoint(folder)
    checkpoint = load_checkpoint(folder, device="cpu", allow_pickle=True)
    assert edited(checkpoint).isfinite().all()


def test_a_pickled_single_file_is_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="convert it to safetensors"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
        (lambda f: shutil.rmtree(f / "unet"), "missing unet"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "missing tokenizer"),
        (
            lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(),
            "holds no diffusion_pytorch_model.safetensors",
        ),
        (lambda f: (f / "unet/config.json").write_text("{"), "cannot be loaded"),
        (
            lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"abc"),
            "cannot be loaded",
        ),
    ],
)
def test_a_spoilt_folder_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/place/at all", "Accepted: a diffusers folder"),
        ("builtin:landscape", "there is builtin:still-life"),
        (__file__, "is not a .safetensors file"),
        ("", "no model_index.json|Accepted"),
    ],
)
def test_what_is_no_checkpoint(source, message):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(source)
    with pytest.raises(CheckpointError, match=message):
        checkpoint_fingerprint(source)


def test_relatives_that_cannot_be_edited_are_named(folder):
    """An inpainting UNet loads, but it takes nine channels."""
    from diffusers import UNet2DConditionModel

    config = json.loads((folder / "unet/config.json").read_text())
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(folder / "unet")
    with pytest.raises(CheckpointError, match="inpainting"):
        load_checkpoint(folder)

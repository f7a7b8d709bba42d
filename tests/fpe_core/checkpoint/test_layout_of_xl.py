"""Names of Stable Diffusion XL's weights in a single file, against diffusers' own conversion
(0.42.1): a model in miniature, written under our names, is loaded by its pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fpe_core import CheckpointError, checkpoint_fingerprint, load_checkpoint
from fpe_core.checkpoint.family_facts import STABLE_DIFFUSION_XL
from fpe_core.checkpoint.original_layout import (
    autoencoder_in_file,
    text_encoders_of_xl_in_file,
    unet_in_file,
)
from tests.builders.tiny_checkpoint import _tokenizer, build_tiny_xl

TEXT = {"vocab_size": 2000, "intermediate_size": 32, "num_attention_heads": 2}


def pipeline() -> Any:
    torch.manual_seed(0)
    unet_config: dict[str, Any] = {
        **STABLE_DIFFUSION_XL.unet,
        "block_out_channels": (8, 16, 16),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (1, 2, 2),
        "cross_attention_dim": 16 + 24,
        "projection_class_embeddings_input_dim": 6 * 8 + 20,
        "addition_time_embed_dim": 8,
        "norm_num_groups": 4,
        "sample_size": 8,
    }
    vae_config: dict[str, Any] = {
        **STABLE_DIFFUSION_XL.vae,
        "block_out_channels": (4, 8, 8, 8),
        "norm_num_groups": 4,
    }
    kinds: tuple[Any, Any] = (UNet2DConditionModel, AutoencoderKL)
    second: dict[str, Any] = {
        **TEXT,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "projection_dim": 20,
    }
    return StableDiffusionXLPipeline(
        vae=kinds[1].from_config(vae_config),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT, hidden_size=16, num_hidden_layers=2)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**second)),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=kinds[0].from_config(unet_config),
        scheduler=EulerDiscreteScheduler.from_config(dict(STABLE_DIFFUSION_XL.scheduler)),
    )


def bare(module: Any) -> dict[str, torch.Tensor]:
    return {name.removeprefix("text_model."): each for name, each in module.state_dict().items()}


def shapes(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in weights.items()}


def in_file(pipe: Any) -> dict[str, torch.Tensor]:
    """The weights under our names, and in OpenCLIP's form."""
    unet, vae = bare(pipe.unet), bare(pipe.vae)
    first, second = bare(pipe.text_encoder), bare(pipe.text_encoder_2)
    names = unet_in_file(shapes(unet), pipe.unet.config)
    assert names is not None
    made = dict(zip(names, unet.values(), strict=True))
    names = autoencoder_in_file(shapes(vae), pipe.vae.config)
    made |= dict(zip(names, vae.values(), strict=True))
    ours, _ = text_encoders_of_xl_in_file(shapes(first), {})
    made |= dict(zip(ours, first.values(), strict=True))
    joined: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for name, each in second.items():
        _, ours = text_encoders_of_xl_in_file({}, {name: tuple(each.shape)})
        joined.setdefault(next(iter(ours)), []).append((name, each))
    for name, parts in joined.items():  # q_proj, k_proj, v_proj in this order
        parts.sort(key=lambda part: "qkv".find(part[0].split(".")[-2][0]))
        each = torch.cat([part for _, part in parts])
        made[name] = each.T if name.endswith("text_projection") else each
    _, expected = text_encoders_of_xl_in_file(shapes(first), shapes(second))
    assert {name: tuple(made[name].shape) for name in expected} == expected
    return {name: each.contiguous() for name, each in made.items()}


def test_diffusers_reads_our_names(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "folder")
    weights = in_file(pipe)
    assert "model.diffusion_model.label_emb.0.0.weight" in weights
    assert weights["conditioner.embedders.1.model.text_projection"].shape == (24, 20)
    save_file(weights, tmp_path / "model.safetensors")
    kind: Any = StableDiffusionXLPipeline
    loaded = kind.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(tmp_path / "folder"), local_files_only=True
    )
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected, found = bare(getattr(pipe, name)), bare(getattr(loaded, name))
        assert expected.keys() == found.keys()
        for key, each in expected.items():
            assert torch.equal(found[key], each), key


# --- a file of its own, loaded --------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(in_file(StableDiffusionXLPipeline.from_pretrained(folder)), path)
    return path


def test_a_single_file_is_the_same_model(folder: Path, single: Path) -> None:
    """Networks bit for bit, both tokenizers, and what an empty prompt is."""
    ours = load_checkpoint(single, device="cpu", dtype=torch.float32, config=folder)
    theirs = load_checkpoint(folder, device="cpu", dtype=torch.float32)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected, found = bare(getattr(theirs, name)), bare(getattr(ours, name))
        assert expected.keys() == found.keys()
        for key, each in expected.items():
            assert torch.equal(found[key], each), (name, key)
    for one, other in zip(
        theirs.text_encoders.encode(["", "the red cat"]),
        ours.text_encoders.encode(["", "the red cat"]),
        strict=True,
    ):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
    assert ours.default_parameters == theirs.default_parameters


def test_the_autoencoder_of_a_single_file_stays_in_float32(folder: Path, single: Path) -> None:
    """It is read in float32, not made wide again."""
    half = load_checkpoint(single, device="cpu", dtype=torch.float16, config=folder)
    exact = load_checkpoint(folder, device="cpu", dtype=torch.float32)
    assert (half.unet.dtype, half.text_encoder_2.dtype) == (torch.float16, torch.float16)
    for key, each in exact.vae.state_dict().items():
        assert torch.equal(half.vae.state_dict()[key], each), key


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("conditioner.embedders.1.model.text_projection", "second text encoder, .* lacks 1 of"),
        ("conditioner.embedders.1.model.ln_final.bias", "second text encoder, .* lacks 1 of"),
        ("model.diffusion_model.label_emb.0.2.bias", "its UNet, .* lacks 1 of"),
    ],
)
def test_a_weight_that_is_missing_is_refused(
    folder: Path, single: Path, tmp_path: Path, lost: str, message: str
) -> None:
    held = load_file(single)
    del held[lost]
    path = tmp_path / "model.safetensors"
    save_file(held, path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, device="cpu", config=folder)


def test_the_fingerprint_has_both_text_encoders_configs(
    folder: Path, single: Path, tmp_path: Path
) -> None:
    before = checkpoint_fingerprint(single, config=folder)
    other = shutil.copytree(folder, tmp_path / "other")
    place = other / "text_encoder_2" / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "hidden_act": "relu"}))
    assert checkpoint_fingerprint(single, config=other) != before


def test_a_single_file_that_reads_instructions_is_the_same_model(tmp_path: Path) -> None:
    """InstructPix2Pix of XL, whose UNet has eight input channels."""
    folder = build_tiny_xl(tmp_path / "folder", sees_source=True)
    path = tmp_path / "model.safetensors"
    save_file(in_file(StableDiffusionXLInstructPix2PixPipeline.from_pretrained(folder)), path)
    ours = load_checkpoint(path, device="cpu", dtype=torch.float32, config=folder)
    theirs = load_checkpoint(folder, device="cpu", dtype=torch.float32)
    assert ours.sees_source
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected, found = bare(getattr(theirs, name)), bare(getattr(ours, name))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], each) for key, each in expected.items()), name

"""The weights of a config are those of the libraries' own modules (diffusers 0.42.1, transformers
5.23.0), and their names in a single file those that diffusers converts back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from fpe_core.checkpoint.layout import (
    Shapes,
    autoencoder_weights,
    clip_weights,
    projected_text_encoder_weights,
    text_encoder_weights,
    unet_weights,
)
from fpe_core.checkpoint.original_layout import (
    autoencoder_in_file,
    text_encoder_in_file,
    unet_in_file,
)

SD_1 = {"cross_attention_dim": 768, "attention_head_dim": 8, "layers_per_block": 2}
SD_2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SD_XL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
BK_SDM = {"cross_attention_dim": 768, "layers_per_block": 1}
UNETS: dict[str, dict[str, Any]] = {
    "diffusers' defaults": {},
    "Stable Diffusion 1": SD_1,
    "Stable Diffusion 2": SD_2,
    "Stable Diffusion XL": SD_XL,
    "BK-SDM": BK_SDM,
    "no middle block": {"mid_block_type": None},
    "layers of each level": {"layers_per_block": [1, 2, 2, 1]},
    "transformers of each level": {"transformer_layers_per_block": [1, 2, 3, 1]},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "text widths of each level": {"cross_attention_dim": [64, 64, 96, 96]},
    "width of the time embedding": {"time_embedding_dim": 100},
    "kernels": {"conv_in_kernel": 1, "conv_out_kernel": 5},
    "inpainting": {"in_channels": 9},
    "one level": {
        "block_out_channels": [64],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
    },
    "three levels, attention below": {
        "block_out_channels": [64, 96, 128],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    },
}
VAE_OF_SD = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "diffusers' defaults": {},
    "Stable Diffusion": VAE_OF_SD,
    "without what can be left out": {
        "block_out_channels": [16, 32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "norm_num_groups": 8,
        "latent_channels": 16,
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
OPENCLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}


def shapes_of(model: Any) -> Shapes:
    return {name: tuple(each.shape) for name, each in model.state_dict().items()}


def on_meta(weights: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in weights.items()}


def shapes(weights: dict[str, torch.Tensor]) -> Shapes:
    return {name: tuple(each.shape) for name, each in weights.items()}


@pytest.mark.parametrize("name", UNETS)
def test_a_unet(name: str) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[name])
    assert unet_weights(UNETS[name]) == shapes_of(unet)
    assert unet_weights(dict(unet.config)) == shapes_of(unet), "as it is saved"


@pytest.mark.parametrize(
    "option",
    [
        {"class_embed_type": "timestep"},
        {"addition_embed_type": "text"},
        {"encoder_hid_dim": 8},
        {"time_cond_proj_dim": 8},
        {"attention_type": "gated"},
        {"time_embedding_type": "fourier"},
        {"layers_per_block": [1, 2]},
    ],
)
def test_a_unet_that_is_not_described(option: dict[str, Any]) -> None:
    assert unet_weights(option) is None


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_an_autoencoder(name: str) -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(**AUTOENCODERS[name])
    assert autoencoder_weights(AUTOENCODERS[name]) == shapes_of(vae)
    assert autoencoder_weights(dict(vae.config)) == shapes_of(vae), "as it is saved"


@pytest.mark.parametrize("options", [{}, OPENCLIP, {"vocab_size": 612, "num_hidden_layers": 2}])
def test_a_text_encoder(options: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**options))
    expected = {name.removeprefix("text_model."): s for name, s in shapes_of(model).items()}
    assert text_encoder_weights(options) == expected
    assert text_encoder_weights({"text_config": options, "model_type": "clip"}) == expected


def test_a_text_encoder_with_a_projection() -> None:
    options = {**OPENCLIP, "projection_dim": 1280}
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(CLIPTextConfig(**options))
    expected = {name.removeprefix("text_model."): s for name, s in shapes_of(model).items()}
    assert projected_text_encoder_weights(options) == expected


@pytest.mark.parametrize("options", [{}, {"vision_config": {"patch_size": 14, "image_size": 28}}])
def test_a_clip(options: dict[str, Any]) -> None:
    config = CLIPConfig(**options)
    with torch.device("meta"):
        model = CLIPModel(config)
    assert clip_weights(config.to_dict()) == shapes_of(model)
    assert clip_weights(options) == shapes_of(model)


@pytest.mark.parametrize("config", [SD_1, SD_2, BK_SDM])
def test_a_unet_in_a_file(config: dict[str, Any]) -> None:
    weights = unet_weights(config)
    assert weights is not None
    in_file = unet_in_file(weights, config)
    assert in_file is not None
    assert "model.diffusion_model.input_blocks.0.0.weight" in in_file
    back = convert_ldm_unet_checkpoint(on_meta(in_file), {"layers_per_block": 2, **config})
    assert shapes(back) == weights


def test_an_autoencoder_in_a_file() -> None:
    weights = autoencoder_weights(VAE_OF_SD)
    assert weights is not None
    back = convert_ldm_vae_checkpoint(on_meta(autoencoder_in_file(weights, VAE_OF_SD)), VAE_OF_SD)
    assert shapes(back) == weights


def test_openclip_in_a_file() -> None:
    """Stable Diffusion 2's: queries, keys and values are one matrix."""
    weights = text_encoder_weights(OPENCLIP)
    in_file = text_encoder_in_file(weights, ["cond_stage_model.model.ln_final.weight"])
    name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    assert in_file[name] == (3072, 1024)
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**OPENCLIP))
    back = shapes(convert_open_clip_checkpoint(model, on_meta(in_file)))
    assert {name.removeprefix("text_model."): shape for name, shape in back.items()} == weights

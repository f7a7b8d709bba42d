"""Models to measure with: Stable Diffusion's shapes with random weights, or any checkpoint.

The cost of a UNet does not depend on its weights, so no download is needed to measure it. The
shapes are those of the published configs.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from fpe_core import (
    Checkpoint,
    EditParameters,
    LayersByLevel,
    LayersByRange,
    load_checkpoint,
)
from fpe_core.checkpoint.files import BUILTIN_STILL_LIFE, locate
from fpe_core.checkpoint.xl import LEVEL
from fpe_core.device import choose_device
from fpe_core.layer_rules import LayerRule
from fpe_core.unet.norms import make_norms_exact

LAYERS = LayersByRange(3, 13)
"""The layers that the authors' rule selects at 512 px; used for every size of Stable Diffusion 1.x
and 2.x."""
_XL_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")


@dataclass(frozen=True)
class Shape:
    """How one model of the Stable Diffusion family differs from another.

    Attributes:
        size_px: edge of the images that it was made for.
        unet, vae, text: arguments of the networks that differ between models.
        prediction_type: the meaning of the UNet's output: "epsilon" or "v_prediction".
        seed: seed of the random weights.
        second_text: arguments of the second text encoder, which Stable Diffusion XL has.
        layers: the layers that take the source's map.
    """

    size_px: int
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    prediction_type: str = "epsilon"
    seed: int = 0
    second_text: dict[str, Any] | None = None
    layers: LayerRule = LAYERS


def _xl_unet(
    channels: tuple[int, ...], *, heads: tuple[int, ...], time_width: int, pooled: int
) -> dict[str, Any]:
    """Arguments of Stable Diffusion XL's UNet. `pooled`: width of the pooled embedding."""
    return {
        "block_out_channels": channels,
        "down_block_types": _XL_BLOCKS,
        "up_block_types": tuple(each.replace("Down", "Up") for each in reversed(_XL_BLOCKS)),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": heads,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time_width,
        "projection_class_embeddings_input_dim": pooled + 6 * time_width,
    }


_SD_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
_SMALL_TEXT = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "heads": 4}

SHAPES = MappingProxyType(
    {
        "sd15": Shape(
            size_px=512,
            unet={
                "block_out_channels": (320, 640, 1280, 1280),
                "attention_head_dim": 8,  # diffusers reads this as the number of heads
            },
            vae=_SD_VAE,
            text={
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "heads": 12,
            },
        ),
        "sd21": Shape(
            size_px=768,
            unet={
                "block_out_channels": (320, 640, 1280, 1280),
                "attention_head_dim": (5, 10, 20, 20),
                "use_linear_projection": True,
            },
            vae=_SD_VAE,
            text={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 23,
                "heads": 16,
                "hidden_act": "gelu",
            },
            prediction_type="v_prediction",
        ),
        "sdxl": Shape(
            size_px=1024,
            unet=_xl_unet((320, 640, 1280), heads=(5, 10, 20), time_width=256, pooled=1280),
            vae=_SD_VAE,
            text={
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "heads": 12,
            },
            second_text={
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "heads": 20,
                "hidden_act": "gelu",
                "projection_dim": 1280,
            },
            layers=LayersByLevel(LEVEL),
        ),
        "cpu-512": Shape(  # eight million parameters, for machines without an accelerator
            size_px=512,
            unet={
                "block_out_channels": (64, 96, 96, 96),
                "attention_head_dim": 4,
                "norm_num_groups": 16,
            },
            vae={
                "block_out_channels": (16, 32, 64, 64),
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "mid_block_add_attention": False,
            },
            text=_SMALL_TEXT,
        ),
        "micro": Shape(  # runs every code path within milliseconds
            size_px=64,
            unet={
                "block_out_channels": (8, 16, 16, 16),
                "attention_head_dim": 2,
                "norm_num_groups": 4,
            },
            vae={
                "block_out_channels": (4, 8, 8, 8),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "mid_block_add_attention": False,
            },
            text={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "heads": 2},
        ),
        "micro-xl": Shape(  # the same of Stable Diffusion XL
            size_px=64,
            unet={
                **_xl_unet((8, 16, 16), heads=(1, 2, 4), time_width=8, pooled=12),
                "norm_num_groups": 4,
            },
            vae={
                "block_out_channels": (4, 8, 8, 8),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "mid_block_add_attention": False,
            },
            text={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "heads": 2},
            second_text={
                "hidden_size": 24,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "heads": 2,
                "projection_dim": 12,
            },
            layers=LayersByLevel(LEVEL),
        ),
    }
)
"""The models with random weights, by the name that --model has."""


def load_model(name: str, device: str) -> Checkpoint:
    """A model in float32: a name of `SHAPES`, "still-life", or what `load_checkpoint` takes.

    Raises:
        CheckpointError: there is no such model, or no such device.
    """
    if name in SHAPES:
        return build_random(name, SHAPES[name], choose_device(device))
    source = BUILTIN_STILL_LIFE if name == "still-life" else name
    return load_checkpoint(source, device=device, dtype=torch.float32)


def cast(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    """A copy of the checkpoint in another dtype, or the checkpoint itself if it has that dtype."""
    if checkpoint.dtype == dtype:
        return checkpoint
    networks = {
        name: copy.deepcopy(getattr(checkpoint, name)).to(dtype)
        for name in ("unet", "vae", "text_encoder", "text_encoder_2")
        if getattr(checkpoint, name) is not None
    }
    return dataclasses.replace(checkpoint, dtype=dtype, **networks)


def build_random(name: str, shape: Shape, device: torch.device) -> Checkpoint:
    """A model with random weights in float32. On one kind of device a shape gives the same
    weights."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(shape.seed)
        unet, vae, text_encoder = _unet(shape), _vae(shape), _text_encoder(shape.text)
        second = None if shape.second_text is None else _text_encoder(shape.second_text)
    for network in filter(None, (unet, vae, text_encoder, second)):
        network.requires_grad_(False).eval()
    _sharpen_maps(unet)
    for network in (unet, vae):
        network.to(memory_format=torch.channels_last)
        make_norms_exact(network)
    return Checkpoint(
        name=f"{name}, random weights",
        fingerprint="",
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(),
        scheduler_config={
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": shape.prediction_type,
        },
        device=device,
        dtype=torch.float32,
        default_parameters=EditParameters(
            layers=shape.layers, width_px=shape.size_px, height_px=shape.size_px
        ),
        text_encoder_2=second,
        tokenizer_2=None if second is None else _tokenizer(),
        empty_prompt_is_zero=second is not None,
    )


def _unet(shape: Shape) -> Any:
    return UNet2DConditionModel(
        sample_size=shape.size_px // 8,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        cross_attention_dim=shape.text["hidden_size"]
        + (shape.second_text or {}).get("hidden_size", 0),
        **{
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            **shape.unet,
        },
    )


def _vae(shape: Shape) -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=shape.size_px,
        **shape.vae,
    )


def _text_encoder(arguments: Mapping[str, Any]) -> Any:
    settings = dict(arguments)
    heads = settings.pop("heads")
    kind = CLIPTextModelWithProjection if "projection_dim" in settings else CLIPTextModel
    return kind(
        CLIPTextConfig(
            vocab_size=49408, max_position_embeddings=77, num_attention_heads=heads, **settings
        )
    )


def _tokenizer() -> Any:
    """The built-in model's tokenizer: with random weights it does not matter which one."""
    folder = locate(BUILTIN_STILL_LIFE, allow_pickle=False, revision=None).path
    return CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77)


@torch.no_grad()
def _sharpen_maps(unet: Any) -> None:
    """Scales up queries and keys. Freshly initialised ones give almost uniform maps, so replacing a
    map would change almost nothing, and the gate could not detect mistakes."""
    for name, parameter in unet.named_parameters():
        if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
            parameter.mul_(3.0)
        elif name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
            parameter.mul_(2.0)
        elif name.endswith(("to_v.weight", "to_out.0.weight")):
            parameter.mul_(1.5)

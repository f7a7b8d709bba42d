"""A random Stable Diffusion 1.x in miniature, written as an ordinary diffusers folder.

Same classes and layout as SD 1.5: sixteen self-attention layers over four resolutions (1-2,
3-4, 5-6, 7, 8-10, 11-13, 14-16 in execution order), cross-attention in the three upper levels, a
VAE of factor 8, a CLIP text encoder with 77 positions, DDIM with SD's betas. At its native 64 px
the levels hold 64, 16, 4 and 1 tokens. It is random, so it edits nothing sensibly, but every code
path of a real checkpoint runs in milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

SIZE_PX = 64
SELF_ATTENTION_TOKENS = (64, 64, 16, 16, 4, 4, 1, 4, 4, 4, 16, 16, 16, 64, 64, 64)
"""Tokens of the sixteen self-attention layers at SIZE_PX, in execution order."""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = ("photo", "red", "green", "blue", "cat", "dog", "car", "snow", "the", "of", "in")


STABLE_DIFFUSION_2 = {
    "use_linear_projection": True,
    "attention_head_dim": (1, 2, 4, 4),  # that is how many heads a level has
    "cross_attention_dim": 24,
}
"""What the UNet of Stable Diffusion 2 has other than that of 1.x, in miniature; its text encoder is
OpenCLIP's, with another activation, and its 768 px models predict v."""


STABLE_DIFFUSION_XL = {
    "use_linear_projection": True,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 40,  # 16 of the first text encoder and 24 of the second
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 12 + 6 * 8,
}
"""What the UNet of Stable Diffusion XL has other than that of 1.x, in miniature: seventy
self-attention layers at two levels of its three, and none at the latent grid itself."""


def build_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    sees_source: bool = False,
    is_second: bool = False,
) -> Path:
    """Write a tiny random Stable Diffusion into `folder` and return it.

    The same seed gives the same weights. `sees_source`: an InstructPix2Pix, whose UNet has eight
    input channels. `is_second`: Stable Diffusion 2, which predicts v.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _tokenizer()
        others = STABLE_DIFFUSION_2 if is_second else {}
        unet = _unet(8 if sees_source else 4, **others)
        vae = _vae()
        text_encoder = _text_encoder(tokenizer, is_second)
    if dtype != torch.float32:
        unet, vae, text_encoder = unet.to(dtype), vae.to(dtype), text_encoder.to(dtype)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if is_second else "epsilon",
    )
    kind = StableDiffusionInstructPix2PixPipeline if sees_source else StableDiffusionPipeline
    pipeline = kind(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def build_tiny_xl(
    folder: Path, *, seed: int = 0, sees_source: bool = False, zeroes_empty: bool = True
) -> Path:
    """Write a tiny random Stable Diffusion XL into `folder` and return it.

    Seventy self-attention layers as the base model's: 1-4 (level 2), 5-64 (level 4), 65-70.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizers = _tokenizer(), _tokenizer(pad="!")
        unet = _unet(8 if sees_source else 4, **STABLE_DIFFUSION_XL)
        vae = _vae()
        configs = [_text_config(tokenizers[0], 16), _text_config(tokenizers[1], 24, 12, "gelu")]
        encoders = CLIPTextModel(configs[0]), CLIPTextModelWithProjection(configs[1])
    options: dict[str, Any] = {"force_zeros_for_empty_prompt": zeroes_empty}
    kind: Any = StableDiffusionXLPipeline
    if sees_source:
        kind = StableDiffusionXLInstructPix2PixPipeline
    pipeline = kind(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
        **options,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _unet(in_channels: int, **others: Any) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=SIZE_PX // 8,
        in_channels=in_channels,
        out_channels=4,
        layers_per_block=2,
        norm_num_groups=4,
        **{
            "block_out_channels": (8, 16, 16, 16),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            **others,
        },
    )
    # Freshly initialised queries and keys give nearly uniform attention maps, and then replacing a
    # map changes nothing.
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
                parameter.mul_(3.0)
            elif name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
                parameter.mul_(2.0)
            elif name.endswith(("to_v.weight", "to_out.0.weight")):
                parameter.mul_(1.5)
    return unet


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(4, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=SIZE_PX,
        scaling_factor=5.0,
    )


def _text_encoder(tokenizer: CLIPTokenizer, is_second: bool) -> CLIPTextModel:
    width = STABLE_DIFFUSION_2["cross_attention_dim"] if is_second else 16
    activation = "gelu" if is_second else "quick_gelu"
    return CLIPTextModel(_text_config(tokenizer, width, 16, activation))


def _text_config(
    tokenizer: CLIPTokenizer, width: int, projection: int = 16, activation: str = "quick_gelu"
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_act=activation,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer(pad: str | None = None) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer over single characters and a few whole words."""
    characters = [chr(code) for code in range(33, 127)] + [chr(code) for code in range(161, 383)]
    tokens = characters + [character + "</w>" for character in characters]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            if left not in tokens:
                tokens.append(left)
    vocabulary = {token: number for number, token in enumerate([*tokens, _START, _END])}
    others = {} if pad is None else {"pad_token": pad}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, **others)


def write_defaults(folder: Path, **recommended: object) -> None:
    """Put recommended edit parameters (fpe_defaults.json) beside the checkpoint in `folder`."""
    (folder / "fpe_defaults.json").write_text(json.dumps(recommended))

"""Facts about the families of Stable Diffusion that a single file does not contain.

The configs of their published models, as far as they are not the defaults of diffusers' and
transformers' classes, and what diffusers reads of them when it converts such a file. With them the
configs of a single file are found without a network. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

Config = Mapping[str, Any]

_FOUR_LEVELS = (128, 256, 512, 512)
_VAE: Config = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": _FOUR_LEVELS,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
_CLIP_L: Config = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_OPENCLIP_H: Config = {  # without its last layer: prompts are the output of the one before
    **_CLIP_L,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}
_OPENCLIP_G: Config = {
    **_CLIP_L,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
_SCHEDULER: Config = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
ZERO_TERMINAL_SNR: Config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""What the scheduler of a model has besides, if its last timestep is pure noise."""


@dataclass(frozen=True)
class Family:
    """The configs of a family's published model.

    Attributes:
        name: also in fingerprints, so it stays as it is.
        pipeline: diffusers' class.
        unet, vae, scheduler: their configs.
        text_encoders: in the order in which their outputs are joined.
        pads: the token that fills a prompt up for each of them; None: the end token.
    """

    name: str
    pipeline: str
    unet: Config
    vae: Config
    text_encoders: tuple[Config, ...]
    pads: tuple[str | None, ...]
    scheduler: Config

    def with_scheduler(self, **values: Any) -> Family:
        """The family with other values in its scheduler's config."""
        return replace(self, scheduler={**self.scheduler, **values})

    def index(self) -> dict[str, Any]:
        """What model_index.json has."""
        found: dict[str, Any] = {
            "_class_name": self.pipeline,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", self.scheduler["_class_name"]],
        }
        for place, config in enumerate(self.text_encoders, start=1):
            end = "" if place == 1 else f"_{place}"
            found[f"text_encoder{end}"] = ["transformers", config["architectures"][0]]
            found[f"tokenizer{end}"] = ["transformers", "CLIPTokenizer"]
        if len(self.text_encoders) > 1:
            found["force_zeros_for_empty_prompt"] = True
        return found


STABLE_DIFFUSION_1 = Family(
    name="stable-diffusion-1",
    pipeline="StableDiffusionPipeline",
    unet={
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    vae=_VAE,
    text_encoders=(_CLIP_L,),
    pads=(None,),
    scheduler=_SCHEDULER,
)
"""Stable Diffusion 1.1 to 1.5."""

INSTRUCT_PIX2PIX = replace(
    STABLE_DIFFUSION_1,
    name="instruct-pix2pix",
    pipeline="StableDiffusionInstructPix2PixPipeline",
    unet={**STABLE_DIFFUSION_1.unet, "in_channels": 8},
)

STABLE_DIFFUSION_2_BASE = replace(
    STABLE_DIFFUSION_1,
    name="stable-diffusion-2-base",
    unet={
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    text_encoders=(_OPENCLIP_H,),
    pads=("!",),
)
"""Stable Diffusion 2.0-base and 2.1-base, at 512 px, which predict epsilon."""

STABLE_DIFFUSION_2 = replace(
    STABLE_DIFFUSION_2_BASE,
    name="stable-diffusion-2",
    # attention in half precision overflows in 2.1
    unet={**STABLE_DIFFUSION_2_BASE.unet, "sample_size": 96, "upcast_attention": True},
    vae={**_VAE, "sample_size": 768},
).with_scheduler(prediction_type="v_prediction")
"""Stable Diffusion 2.0 and 2.1, at 768 px, which predict v."""

STABLE_DIFFUSION_XL = Family(
    name="stable-diffusion-xl",
    pipeline="StableDiffusionXLPipeline",
    unet={
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128,
        "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    text_encoders=(_CLIP_L, _OPENCLIP_G),
    pads=(None, "!"),
    scheduler=_SCHEDULER,
)
"""Stable Diffusion XL base 1.0."""

"""What a UNet's config says that `fpe_core.unet.forward` does not compute. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
MIDDLE_BLOCK = "UNetMidBlock2DCrossAttn"
_UNSUPPORTED = (
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
    "time_embedding_act_fn",
    "center_input_sample",
    "dual_cross_attention",
)


def is_told_sizes(config: Mapping[str, Any]) -> bool:
    """Whether a UNet of this config is told the size of the picture and the prompt's pooled
    embedding beside the timestep, as Stable Diffusion XL's is."""
    return config.get("addition_embed_type") == "text_time"


def config_differences(config: Mapping[str, Any]) -> list[str]:
    """Why a UNet2DConditionModel of this config is not of Stable Diffusion's kind, as text."""
    found = [f"it has {name}" for name in _UNSUPPORTED if config.get(name)]
    if config.get("addition_embed_type") not in (None, "text_time"):
        found.append(f"it has addition_embed_type {config['addition_embed_type']}")
    kinds = [*(config.get("down_block_types") or ()), *(config.get("up_block_types") or ())]
    found += [f"it has a {kind}" for kind in dict.fromkeys(kinds) if kind not in BLOCKS]
    middle = config.get("mid_block_type", MIDDLE_BLOCK)
    if middle not in (MIDDLE_BLOCK, None):
        found.append(f"it has a {middle}")
    if config.get("attention_type", "default") != "default":
        found.append(f"its attention is {config['attention_type']}")
    only = config.get("only_cross_attention")
    if any(only) if isinstance(only, list | tuple) else only:
        found.append("it has only_cross_attention")
    return found

"""What a checkpoint of Stable Diffusion XL has besides, and which of its kind cannot be used.

By configs alone; needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.layout import text_config
from fpe_core.unet.family import is_told_sizes

SECOND_PARTS = ("text_encoder_2", "tokenizer_2")
"""The components that other families do not have."""
GUIDANCE_SCALE = 5.0
"""What diffusers' pipelines and the model's authors use."""
LEVEL = 4
"""Self-attention at a quarter of the latent grid's edges and below: layers 5-64 of 70, those with
at most 1024 positions at 1024 px, as layers 3-13 of Stable Diffusion 1.x have at 512 px."""
REFINER = (
    "it is a refiner, which is told how good a picture should look, and only finishes what a base "
    "model began: there is no inversion by it. Use the base model"
)
_SIZES, _SIZES_OF_REFINER = 6, 5
FEW_STEPS = re.compile(
    r"turbo|lightning|hyper[-_ ]?sd|(?<![a-z])(lcm|dmd2?)(?![a-z])", re.IGNORECASE
)
"""What names of models say that are sampled in a few steps."""


def is_xl(index: Mapping[str, Any], unet: Mapping[str, Any]) -> bool:
    """Whether it is of this family, by its model_index.json and its UNet's config."""
    return is_told_sizes(unet) or any(_has(index, part) for part in SECOND_PARTS)


def empty_prompt_is_zero(index: Mapping[str, Any], unet: Mapping[str, Any]) -> bool:
    """Whether an empty prompt is an embedding of zeros; diffusers' default is that it is."""
    return is_xl(index, unet) and bool(index.get("force_zeros_for_empty_prompt", True))


def has_second_parts(index: Mapping[str, Any]) -> bool:
    """Whether a diffusers folder has a second text encoder and its tokenizer."""
    return all(_has(index, part) for part in SECOND_PARTS)


def problems_of(
    index: Mapping[str, Any],
    unet: Mapping[str, Any],
    text_encoders: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> list[str]:
    """Why a model of this family cannot be edited with; empty if it can.

    `text_encoders`: the configs of both; an empty one if there is none.
    """
    if not is_told_sizes(unet):
        return ["it has a second text encoder, and a UNet without added embeddings"]
    waves = int(unet.get("addition_time_embed_dim") or 256)
    taken = int(unet.get("projection_class_embeddings_input_dim") or 0)
    pooled = int(text_config(text_encoders[1]).get("projection_dim", 512))
    if index.get("requires_aesthetics_score") or taken == pooled + _SIZES_OF_REFINER * waves:
        return [REFINER]
    if not has_second_parts(index):
        return ["it has no second text encoder (text_encoder_2, tokenizer_2)"]
    problems = []
    if index.get("is_cosxl_edit"):
        problems.append("it is CosXL-Edit, whose noise levels are those of another schedule (EDM)")
    if taken != pooled + _SIZES * waves:
        problems.append(
            f"its UNet takes {taken} numbers beside the timestep; a pooled prompt and six sizes "
            f"are {pooled + _SIZES * waves}"
        )
    return problems


def few_steps(source: str | Path, scheduler: Mapping[str, Any]) -> str:
    """Why a model of this family is one of few steps; "" if nothing says so.

    Its networks are those of any other; only its name, or the schedule that it comes with, tells.
    """
    name = Path(str(source)).name
    reason = ""
    if found := FEW_STEPS.search(name):
        reason = f"its name says {found[0]!r}"
    elif (
        scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type", "epsilon") == "epsilon"
        and not scheduler.get("rescale_betas_zero_snr")
    ):
        reason = (
            f"its scheduler ({scheduler.get('_class_name')}, timestep_spacing trailing, epsilon) "
            "is that of one"
        )
    if not reason:
        return ""
    return (
        f"it looks like a model of few steps (Turbo, Lightning): {reason}. These are distilled to "
        "sample in one to eight steps without guidance, and DDIM inversion does not lead back to a "
        "picture. Use the model it was made from; if it is no such model, give it another name or "
        "the scheduler_config.json of the base model"
    )


def _has(index: Mapping[str, Any], part: str) -> bool:
    entry = index.get(part)
    return isinstance(entry, list) and entry[-1] is not None

"""The built-in scorer's shape: CLIP (Radford et al. 2021, arXiv 2103.00020) in small."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from fpe_core.still_life.architecture import IMAGE_SIZE_PX, TEXT_WIDTH, TOKENS

PATCH_PX = 16
_VISION_WIDTH = 128
_EMBEDDING_WIDTH = 96


def build_scorer(tokenizer: CLIPTokenizer) -> CLIPModel:
    """(B, 3, 128, 128) in -1..1 and (M, up to 32) token ids to embeddings of 96; 1.8 M weights.

    Positions of patches start as sines and cosines of row and column (Beyer et al. 2022, arXiv
    2205.01580), and go on learning: CLIP's own start makes them a twentieth of a patch's colour.
    """
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 4 * TEXT_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": _VISION_WIDTH,
            "intermediate_size": 4 * _VISION_WIDTH,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE_PX,
            "patch_size": PATCH_PX,
        },
        projection_dim=_EMBEDDING_WIDTH,
    )
    model = CLIPModel(config)
    positions = model.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        positions[1:] = 0.5 * _places(IMAGE_SIZE_PX // PATCH_PX, _VISION_WIDTH)
    return model


def _places(across: int, width: int) -> torch.Tensor:
    """(across squared, width): sines and cosines of each patch's row and column, row by row."""
    frequencies = math.pi * 2.0 ** torch.linspace(-1.0, math.log2(across) - 1.0, width // 4)
    angles = torch.outer((torch.arange(across) + 0.5) / across, frequencies)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves.repeat_interleave(across, 0), waves.repeat(across, 1)
    return torch.cat([rows, columns], dim=1)


def image_preprocessing() -> dict[str, Any]:
    """The content of preprocessor_config.json: pictures to (3, 128, 128) in -1..1."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE_PX},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }

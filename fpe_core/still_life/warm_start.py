"""Starts a training from an exported model instead of from nothing; new words may come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from fpe_core.still_life.train_denoiser import Denoiser

_TOKEN_EMBEDDING = "embeddings.token_embedding.weight"  # noqa: S105


def take_weights(
    checkpoint: Path, autoencoder: AutoencoderKL, denoiser: Denoiser, tokenizer: CLIPTokenizer
) -> dict[str, Any]:
    """Fills the networks with a checkpoint's weights; returns its `training.json`.

    A token that both vocabularies have keeps its embedding, whatever its number; one that is new
    keeps the random embedding it has.
    """
    autoencoder.load_state_dict(_weights(checkpoint / "vae"))
    denoiser.unet.load_state_dict(_weights(checkpoint / "unet"))
    text = _weights(checkpoint / "text_encoder")
    name = next(name for name in text if name.endswith(_TOKEN_EMBEDDING))
    old_rows, old_vocabulary = text[name], _vocabulary(checkpoint / "tokenizer")
    rows = denoiser.text_encoder.state_dict()[name].clone()
    for token, index in tokenizer.get_vocab().items():
        if token in old_vocabulary:
            rows[index] = old_rows[old_vocabulary[token]]
    denoiser.text_encoder.load_state_dict({**text, name: rows})
    figures: dict[str, Any] = json.loads((checkpoint / "training.json").read_text("utf-8"))
    return figures


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return {name: value.float() for name, value in weights.items()}


def _vocabulary(folder: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text("utf-8"))
    return vocabulary

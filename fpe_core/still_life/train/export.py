"""Exports a trained model as a diffusers folder, and reads one back to continue training from it.

An export is written next to the old one and then renamed, so no reader sees half of it. Training
may continue with new words in the vocabulary.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from fpe_core.still_life.train.architecture import assemble, build_tokenizer
from fpe_core.still_life.train.denoiser import NoisePredictor
from fpe_core.still_life.train.progress import write_json

_KEPT = ("README.md", "fpe_defaults.json", "validation.json")
_SIZE_AND_STEPS = {"size_px": 128, "steps": 25}  # the others are the paper's until they are chosen


def export(
    folder: Path,
    autoencoder: AutoencoderKL,
    denoiser: NoisePredictor,
    tokenizer: CLIPTokenizer,
    figures: dict[str, Any],
) -> None:
    """Replaces `folder` by the model in float16 safetensors; keeps its model card and chosen
    parameters."""
    vae, unet, text_encoder = (
        copy.deepcopy(module).cpu().eval().to(torch.float16)
        for module in (autoencoder, denoiser.unet, denoiser.text_encoder)
    )
    fresh = folder.with_name(f"{folder.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    assemble(vae, unet, text_encoder, tokenizer).save_pretrained(fresh, safe_serialization=True)
    build_tokenizer(fresh / "tokenizer")  # vocab.json and merges.txt for older readers
    write_json(fresh / "fpe_defaults.json", _SIZE_AND_STEPS)
    write_json(fresh / "training.json", figures)
    replace_folder(folder, fresh, keep=_KEPT)


def replace_folder(folder: Path, fresh: Path, *, keep: Sequence[str]) -> None:
    """Replaces `folder` by the folder `fresh`, but keeps the files named in `keep`."""
    for name in keep:
        if (folder / name).exists():
            shutil.copy2(folder / name, fresh / name)
    for weights in fresh.rglob("*.safetensors"):
        weights.chmod(0o644)  # safetensors lets only the owner read them
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


_TOKEN_EMBEDDING = "embeddings.token_embedding.weight"  # noqa: S105


def take_weights(
    checkpoint: Path, autoencoder: AutoencoderKL, denoiser: NoisePredictor, tokenizer: CLIPTokenizer
) -> dict[str, Any]:
    """Fills the networks with a checkpoint's weights; returns its `training.json`.

    A token that both vocabularies have keeps its embedding, whatever its id; a new token keeps its
    random embedding.
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

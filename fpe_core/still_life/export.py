"""Writes a trained model as a diffusers folder, by one swap: no reader sees half of it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from fpe_core.still_life.architecture import assemble, build_tokenizer
from fpe_core.still_life.progress import write_json
from fpe_core.still_life.train_denoiser import Denoiser

_KEPT = ("README.md", "fpe_defaults.json", "validation.json")
_PLACE_AND_PACE = {"size_px": 128, "steps": 25}  # the rest is the paper's until it is chosen


def export(
    folder: Path,
    autoencoder: AutoencoderKL,
    denoiser: Denoiser,
    tokenizer: CLIPTokenizer,
    figures: dict[str, Any],
) -> None:
    """Replaces `folder` by the model in float16 safetensors; a model card in it stays, and so do
    parameters that were chosen."""
    vae, unet, text_encoder = (
        copy.deepcopy(module).cpu().eval().to(torch.float16)
        for module in (autoencoder, denoiser.unet, denoiser.text_encoder)
    )
    fresh = folder.with_name(f"{folder.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    assemble(vae, unet, text_encoder, tokenizer).save_pretrained(fresh, safe_serialization=True)
    build_tokenizer(fresh / "tokenizer")  # vocab.json and merges.txt for older readers
    write_json(fresh / "fpe_defaults.json", _PLACE_AND_PACE)
    write_json(fresh / "training.json", figures)
    replace_folder(folder, fresh, keep=_KEPT)


def replace_folder(folder: Path, fresh: Path, *, keep: Sequence[str]) -> None:
    """Puts the folder `fresh` in the place of `folder`; of what is there, the files `keep` stay."""
    for name in keep:
        if (folder / name).exists():
            shutil.copy2(folder / name, fresh / name)
    for weights in fresh.rglob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes them for the owner alone
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)

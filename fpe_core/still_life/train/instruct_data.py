"""The training pairs of the model with instructions: scenes that differ in one factor.

A group is one scene and, for each factor, the same scene with another value of it. Each of the
five is an edit of the scene, and the scene is an edit of each: ten pairs of six pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTokenizer

from fpe_core.still_life.benchmark.edits import BenchmarkEdit, edits_of_scene
from fpe_core.still_life.instructions import INSTRUCTIONS, instruction
from fpe_core.still_life.render import as_pixels, render
from fpe_core.still_life.scene import FACTORS
from fpe_core.still_life.train import workers
from fpe_core.still_life.train.architecture import IMAGE_SIZE_PX, TOKENS
from fpe_core.still_life.train.data import FIRST_TRAINING_SEED

PHRASINGS = 4
FACTOR_SHARES = {"shape": 3.0, "style": 1.5}
"""How often a factor's pairs are drawn, where it is not once: a new outline is learned last."""
GROUP = 1 + len(FACTORS)
_GROUPS_PER_BATCH = 4


@dataclass(frozen=True)
class Pairs:
    """Training pairs as tensors.

    Attributes:
        latents: the pictures' latent modes, not scaled: (pictures, 4, 16, 16) float32.
        source, target: each pair's pictures: (N,) int64.
        sentence: each pair's instructions, one a phrasing, as rows of `hidden`: (N, 4) int64.
        chance: how likely each pair is to be drawn, with a sum of 1: (N,) float64.
        hidden: the text encoder's output for every sentence; row 0 is the empty one:
            (sentences, 32, 128) float32.
    """

    latents: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    sentence: torch.Tensor
    chance: NDArray[np.float64]
    hidden: torch.Tensor

    def __len__(self) -> int:
        return len(self.source)


def training_pairs(
    groups: int,
    autoencoder: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
) -> Pairs:
    """The pairs of the first `groups` training seeds; latents are encoded now or read from disk."""
    edits = [edits_of_scene(FIRST_TRAINING_SEED + number) for number in range(groups)]
    latents = _latents(autoencoder, edits, folder)
    source, target, texts, shares = [], [], [], []
    for number, group in enumerate(edits):
        first = number * GROUP
        for place, edit in enumerate(group, start=1):
            for there, back, each in (
                (first, first + place, edit),
                (first + place, first, _backwards(edit)),
            ):
                source.append(there)
                target.append(back)
                texts.append([_sentence(each, k) for k in range(PHRASINGS)])
                shares.append(FACTOR_SHARES.get(each.factor, 1.0))
    rows = {
        text: row
        for row, text in enumerate(
            dict.fromkeys(["", *(text for of_pair in texts for text in of_pair)])
        )
    }
    return Pairs(
        latents,
        torch.tensor(source),
        torch.tensor(target),
        torch.tensor([[rows[text] for text in of_pair] for of_pair in texts]),
        np.asarray(shares) / np.sum(shares),
        encoded_texts(text_encoder, tokenizer, list(rows)),
    )


@torch.no_grad()
def encoded_texts(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]
) -> torch.Tensor:
    """What the text encoder gives for each text: (N, 32, 128) float32."""
    ids = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    hidden = [text_encoder(part).last_hidden_state for part in ids.split(256)]
    return torch.cat(hidden)


def _sentence(edit: BenchmarkEdit, phrasing: int) -> str:
    return instruction(edit.source, edit.factor, edit.target_value, phrasing)


def _backwards(edit: BenchmarkEdit) -> BenchmarkEdit:
    return BenchmarkEdit(edit.seed, edit.factor, edit.answer, edit.source)


def _latents(
    autoencoder: AutoencoderKL, edits: list[list[BenchmarkEdit]], folder: Path
) -> torch.Tensor:
    """The latent modes of every group's pictures: (groups * 6, 4, 16, 16) float32."""
    path, shares = folder / f"pair_latents_{len(edits)}.pt", workers.count()
    if not path.exists():
        batches = range(0, len(edits), _GROUPS_PER_BATCH)
        mine = [
            _encoded(autoencoder, edits[first : first + _GROUPS_PER_BATCH])
            for first in batches[workers.rank() :: shares]
        ]
        torch.save(mine, folder / f"pair_latents_of_{workers.rank()}.pt")
        workers.wait_for_all()
        if workers.rank() == 0:
            parts = [torch.load(folder / f"pair_latents_of_{n}.pt") for n in range(shares)]
            in_order = [parts[n % shares][n // shares] for n in range(len(batches))]
            torch.save(torch.cat(in_order), path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
        workers.wait_for_all()
    latents: torch.Tensor = torch.load(path)
    return latents


@torch.no_grad()
def _encoded(autoencoder: AutoencoderKL, groups: list[list[BenchmarkEdit]]) -> torch.Tensor:
    images: list[NDArray[np.uint8]] = [
        np.asarray(render(scene, IMAGE_SIZE_PX))
        for group in groups
        for scene in [group[0].source, *(edit.answer for edit in group)]
    ]
    pixels = as_pixels(np.stack(images)).to(memory_format=torch.channels_last)
    mode: torch.Tensor = autoencoder.encode(pixels).latent_dist.mode()
    return mode.contiguous()


assert all(len(each) == PHRASINGS for each in INSTRUCTIONS.values())

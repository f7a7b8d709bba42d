"""The architecture of the built-in model, before training: its networks and its tokenizer.

The networks are small versions of Stable Diffusion 1.x's, of the same classes. The tokenizer is
CLIP's, with a byte-level vocabulary in which every word of the grammar is one token.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fpe_core.still_life.scene import grammar_words

IMAGE_SIZE_PX = 128
LATENT_SIZE = 16
TOKENS = 32
TEXT_WIDTH = 128


def build_autoencoder() -> AutoencoderKL:
    """(B, 3, H, W) in -1..1 to (B, 4, H/8, W/8) and back.

    It has no attention, so it can train on crops; H and W are multiples of 8.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=IMAGE_SIZE_PX,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Predicts noise on (B, 4, 16, 16) latents; sixteen self-attention layers in SD 1.5's order."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 96, 96, 96),
        layers_per_block=2,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """(B, 32) token ids to (B, 32, 128) hidden states."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes vocab.json and merges.txt into `folder` and opens them as a CLIP tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = learn_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.x."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def assemble(
    autoencoder: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> StableDiffusionPipeline:
    """The parts as one pipeline, ready for `save_pretrained`."""
    parts: dict[str, Any] = {
        "vae": autoencoder,
        "unet": unet,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "scheduler": build_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


WORD_END = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")

Pair = tuple[str, str]


def learn_vocabulary() -> tuple[dict[str, int], list[Pair]]:
    """The vocabulary (token to id) and the merges in order of rank.

    Byte-pair encoding run on the grammar until each word is whole: since encoding replays the
    merges in the order in which they were learned, every grammar word comes out as one token. Any
    other text falls back to shorter pieces, down to single bytes.
    """
    words = [[*word[:-1], word[-1] + WORD_END] for word in grammar_words()]
    merges: list[Pair] = []
    while any(len(word) > 1 for word in words):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [_merge(word, best) for word in words]
    bytes_ = _byte_characters()
    tokens = [*bytes_, *(b + WORD_END for b in bytes_), *dict.fromkeys(a + b for a, b in merges)]
    return {token: index for index, token in enumerate([*tokens, *SPECIAL])}, merges


def _merge(word: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in its order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(hidden))]

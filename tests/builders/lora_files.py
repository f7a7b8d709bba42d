"""LoRAs with random values for given networks, in the layouts that trainers write."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fpe_core import Checkpoint
from tests.builders.single_file import _unet_key

Shapes = Mapping[str, tuple[int, ...]]


def layers_of(network: Any, kinds: str = ".*") -> dict[str, tuple[int, ...]]:
    """Linear layers and convolutions of a network whose names match, with their weights' shapes."""
    return {
        name: tuple(module.weight.shape)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and re.search(kinds, name)
    }


def factors(
    layers: Shapes, seed: int, *, rank: int = 4, conv_rank: int = 2
) -> dict[str, tuple[Tensor, Tensor]]:
    """down and up of each layer, not zero; those of convolutions of 3 x 3 with a rank of their
    own."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    found = {}
    for name, shape in layers.items():
        own = conv_rank if shape[2:] == (3, 3) else rank
        found[name] = (random(own, *shape[1:]), random(shape[0], own, *(1 for _ in shape[2:])))
    return found


def kohya(
    layers: Shapes,
    prefix: str,
    seed: int,
    *,
    alpha: float = 2.0,
    conv_alpha: float = 1.0,
    spelling: Callable[[str], str] = str,
) -> dict[str, Tensor]:
    """kohya's names, `lora_unet_down_blocks_0_...`; `spelling`: another name for a layer."""
    tensors = {}
    for name, (down, up) in factors(layers, seed).items():
        flat = prefix + spelling(name).replace(".", "_")
        tensors[f"{flat}.lora_down.weight"] = down
        tensors[f"{flat}.lora_up.weight"] = up
        tensors[f"{flat}.alpha"] = torch.tensor(conv_alpha if down.shape[2:] == (3, 3) else alpha)
    return tensors


def kohya_of_text(layers: Shapes, prefix: str, seed: int, **options: Any) -> dict[str, Tensor]:
    """kohya's names of a text encoder, which has the prefix `text_model.` in all versions."""

    def spelled(name: str) -> str:
        return name if name == "text_projection" else f"text_model.{name.removeprefix(TEXT)}"

    return kohya(layers, prefix, seed, spelling=spelled, **options)


TEXT = "text_model."
PEFT = (".lora_A.weight", ".lora_B.weight")
DIFFUSERS = (".lora.down.weight", ".lora.up.weight")
TEXT_OF_DIFFUSERS = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")


def dotted(layers: Shapes, prefix: str, seed: int, ends: tuple[str, str]) -> dict[str, Tensor]:
    """diffusers' names, `unet.down_blocks.0...to_q.lora_A.weight`."""
    tensors = {}
    for name, (down, up) in factors(layers, seed, conv_rank=4).items():
        tensors[f"{prefix}{name}{ends[0]}"] = down
        tensors[f"{prefix}{name}{ends[1]}"] = up
    return tensors


def old_attention(unet: Any, seed: int) -> dict[str, Tensor]:
    """The names of diffusers' first LoRAs: `unet....attn1.processor.to_q_lora.down.weight`."""
    found = {}
    for name, (down, up) in factors(layers_of(unet, r"attn\d\.to_"), seed).items():
        place, _, projection = name.removesuffix(".0").rpartition(".")
        old = f"unet.{place}.processor.{projection}_lora"
        found |= {f"{old}.down.weight": down, f"{old}.up.weight": up}
    return found


def kohya_of(checkpoint: Checkpoint, seed: int = 1) -> dict[str, Tensor]:
    """A LoRA for every layer of a checkpoint's UNet and text encoder, in kohya's layout."""
    text = layers_of(checkpoint.text_encoder)
    return kohya(layers_of(checkpoint.unet), "lora_unet_", seed) | kohya_of_text(
        text, "lora_te_", seed + 1
    )


def original_spelling(name: str) -> str:
    """The original layout's name of a UNet's layer, `input_blocks.1.1...`."""
    return _unet_key(f"{name}.weight").removesuffix(".weight")


def written(tensors: Mapping[str, Tensor], path: Path, **metadata: str) -> Path:
    save_file(dict(tensors), path, metadata=metadata or None)
    return path

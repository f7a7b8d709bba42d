"""Adds LoRAs to the weights of a checkpoint: W += weight * scale * up @ down.

`scale` is alpha / rank; without an alpha it is 1. Merged is in float32 or the networks' own type,
if that is wider; networks in half precision are loaded wide and made narrow afterwards.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fpe_core.checkpoint.add_ons import Lora
from fpe_core.checkpoint.lora_layers import LoraLayer, Network, fitted_layers, refuse_unused_weight
from fpe_core.checkpoint.tensor_files import header_of, tensors_of
from fpe_core.errors import CheckpointError

_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's settings in the header of a file."""
_PREFIX = "text_model."


def merge_loras(components: Mapping[str, Any], loras: Sequence[Lora], source: str | Path) -> None:
    """Adds LoRAs to a checkpoint's UNet and text encoders, in place.

    Args:
        components: the networks by name: "unet", "text_encoder" and, if there is one,
            "text_encoder_2". Their weights are at least float32.
        loras: with paths on this machine. The merge is a sum, in this order.
        source: the checkpoint's name, for messages.

    Raises:
        CheckpointError: a file that is not a LoRA for these networks.
    """
    networks = {
        name: _network(components[name])
        for name in ("unet", "text_encoder", "text_encoder_2")
        if components.get(name) is not None
    }
    for lora in loras:
        _merge(Path(lora.file), lora, components, networks, source)


def _network(module: Any) -> Network:
    config = module.config
    return Network(
        {name.removeprefix(_PREFIX): tuple(each.shape) for name, each in module.named_parameters()},
        dict(config) if hasattr(config, "items") else config.to_dict(),
    )


def _merge(
    path: Path,
    lora: Lora,
    components: Mapping[str, Any],
    networks: Mapping[str, Network],
    source: str | Path,
) -> None:
    tensors = tensors_of(path, "LoRA")
    held = {name: header_of(each) for name, each in tensors.items()}
    layers = fitted_layers(path, held, networks, source)
    refuse_unused_weight(path, lora, layers)
    settings = _settings_of(path)
    weights = {
        name: {n.removeprefix(_PREFIX): each for n, each in components[name].named_parameters()}
        for name in networks
    }
    with torch.no_grad():
        for each in layers:
            weight = weights[each.network][f"{each.layer}.weight"]
            added = _delta(each, tensors, settings, weight.dtype).reshape(weight.shape)
            if not added.isfinite().all():
                raise CheckpointError(f"LoRA {path}: {each.down} or {each.up} is not finite")
            weight += lora.weight_of(each.network) * added.to(weight.device)


def _delta(
    each: LoraLayer,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    dtype: torch.dtype,
) -> Tensor:
    """scale * up @ down, (outputs, everything else of the weight)."""
    wide = torch.promote_types(dtype, torch.float32)
    down, up = tensors[each.down].to(wide), tensors[each.up].to(wide)
    rank = down.shape[0]
    scale = _scale(each, rank, settings)
    if each.alpha is not None:
        scale = float(tensors[each.alpha].to(torch.float64)) / rank
    return scale * (up.flatten(1) @ down.flatten(1))


def _settings_of(path: Path) -> Mapping[str, Any]:
    """PEFT's settings in a file's header, "unet.lora_alpha" for one; {} if it has none."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as opened:
        written = (opened.metadata() or {}).get(_METADATA)
    try:
        settings = {} if written is None else json.loads(written)
        if not isinstance(settings, dict):
            raise TypeError("it is not a mapping")
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"LoRA {path}: its {_METADATA} cannot be read: {error}") from error
    return settings


def _scale(each: LoraLayer, rank: int, settings: Mapping[str, Any]) -> float:
    """What PEFT scales a layer's changes with by its settings; 1 without any."""
    alpha = settings.get(f"{each.network}.lora_alpha")
    if alpha is None:
        return 1.0
    prefix = "" if each.network == "unet" else _PREFIX
    patterns = settings.get(f"{each.network}.alpha_pattern") or {}
    for pattern, own in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", prefix + each.layer):
            alpha = own
            break
    is_root = bool(settings.get(f"{each.network}.use_rslora"))
    return float(alpha) / (math.sqrt(rank) if is_root else rank)

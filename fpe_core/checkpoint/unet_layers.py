"""The self-attention layers of a UNet, from its config alone. Needs no torch for the families that
`fpe_core.checkpoint.layout` describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fpe_core.checkpoint.layout import unet_weights
from fpe_core.unet.attention import SelfAttentionLayer, self_attention_layers

_QUERY, _PROCESSOR = ".attn1.to_q.weight", ".attn1.processor"


@dataclass(frozen=True)
class UNetLayer:
    """One self-attention layer, with the cross-attention behind it.

    Attributes:
        number: from 1, in order of execution.
        part: "down", "middle" or "up".
        level: by how much the latent grid is reduced there: 1, 2, 4, ...
        tokens: positions that it sees.
        heads, channels: of the self-attention.
        text_width: of the texts that the cross-attention sees.
    """

    number: int
    part: str
    level: int
    tokens: int
    heads: int
    channels: int
    text_width: int


@dataclass(frozen=True)
class _NamesOfUNet:
    """As much of a UNet2DConditionModel as its layers are found by."""

    attn_processors: tuple[str, ...]
    down_blocks: range


def unet_layers(config: Mapping[str, Any], height: int, width: int) -> tuple[UNetLayer, ...]:
    """The layers for latents of `height` x `width`."""
    return tuple(_layer(config, each) for each in located(config, height, width))


def located(config: Mapping[str, Any], height: int, width: int) -> tuple[SelfAttentionLayer, ...]:
    """The same as the UNet's own; see `fpe_core.unet.attention`."""
    weights: Iterable[str] | None = unet_weights(config)
    names = [name for name in weights or _names_on_meta(config) if name.endswith(_QUERY)]
    processors = tuple(name.removesuffix(_QUERY) + _PROCESSOR for name in names)
    levels = range(len(_of_levels(config, "block_out_channels", (320, 640, 1280, 1280))))
    return self_attention_layers(_NamesOfUNet(processors, levels), height, width)


def _layer(config: Mapping[str, Any], layer: SelfAttentionLayer) -> UNetLayer:
    level = layer.level.bit_length() - 1
    channels = _of_levels(config, "block_out_channels", (320, 640, 1280, 1280))
    # diffusers reads attention_head_dim as the number of heads, unless both are given
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    widths = config.get("cross_attention_dim", 1280)
    return UNetLayer(
        layer.position,
        layer.part,
        layer.level,
        layer.tokens,
        int(_at(heads, level)),
        int(channels[level]),
        int(_at(widths, level)),
    )


def _of_levels(config: Mapping[str, Any], name: str, default: tuple[int, ...]) -> list[int]:
    return list(config.get(name) or default)


def _at(value: Any, level: int) -> Any:
    return value[level] if isinstance(value, list | tuple) else value


def _names_on_meta(config: Mapping[str, Any]) -> list[str]:
    """Of a UNet that is not described: without its weights, as diffusers builds it."""
    import torch
    from diffusers import UNet2DConditionModel

    kind: Any = UNet2DConditionModel
    with torch.device("meta"):
        return list(kind.from_config(dict(config)).state_dict())

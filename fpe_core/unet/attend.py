"""Attention of a diffusers layer, from queries, keys and values already computed.

torch chooses the kernel; its choice was the fastest for all measured shapes, on CPU and GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def attended(attn: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The values that each query attends to, with the heads side by side.

    Args:
        attn: the layer, `diffusers.models.attention_processor.Attention`.
        query: (rows, tokens, heads * d).
        key, value: (rows, tokens or text tokens, heads * d).

    Returns:
        (rows, tokens, heads * d).
    """
    query, key, value = (_split_heads(each, attn.heads) for each in (query, key, value))
    joined = functional.scaled_dot_product_attention(query, key, value)
    return joined.transpose(1, 2).flatten(2)


def projected(attn: Any, hidden: Tensor, joined: Tensor) -> Tensor:
    """What diffusers' AttnProcessor2_0 does after attending.

    Args:
        hidden: the layer's input, (rows, tokens, channels); for its residual, if any.
        joined: from `attended`.

    Returns:
        (rows, tokens, channels).
    """
    out: Tensor = attn.to_out[1](attn.to_out[0](joined))
    if attn.residual_connection:
        out = out + hidden
    if attn.rescale_output_factor != 1.0:  # dividing by 1 would cost a pass over memory
        out = out / attn.rescale_output_factor
    return out


def map_columns(attn: Any, query: Tensor, key: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of columns of attention maps, averaged over the heads.

    Args:
        query, key: as for `attended`.
        weights: (rows, text tokens, sums), float32 or float64.

    Returns:
        (rows, tokens, sums), dtype of `weights`.
    """
    query, key = (_split_heads(each, attn.heads).to(weights.dtype) for each in (query, key))
    maps = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
    return (maps @ weights[:, None]).mean(dim=1)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, tokens, heads * d) to (rows, heads, tokens, d)."""
    rows, tokens, width = x.shape
    return x.view(rows, tokens, heads, width // heads).transpose(1, 2)

"""Attention of a diffusers layer, from queries, keys and values already computed.

torch chooses the kernel; its choice was the fastest for all measured shapes, on CPU and GPU.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional


def attend(attn: Any, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What diffusers' AttnProcessor2_0 does after its projections.

    Args:
        attn: the layer, `diffusers.models.attention_processor.Attention`.
        hidden: the layer's input, (rows, tokens, channels); for its residual, if any.
        query: (rows, tokens, heads * d).
        key, value: (rows, tokens or text tokens, heads * d).

    Returns:
        (rows, tokens, channels).
    """
    query, key, value = (_split_heads(each, attn.heads) for each in (query, key, value))
    attended = functional.scaled_dot_product_attention(query, key, value)
    joined = attended.transpose(1, 2).flatten(2)
    out: Tensor = attn.to_out[1](attn.to_out[0](joined))
    if attn.residual_connection:
        out = out + hidden
    if attn.rescale_output_factor != 1.0:  # dividing by 1 would cost a pass over memory
        out = out / attn.rescale_output_factor
    return out


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, tokens, heads * d) to (rows, heads, tokens, d)."""
    rows, tokens, width = x.shape
    return x.view(rows, tokens, heads, width // heads).transpose(1, 2)

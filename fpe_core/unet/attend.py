"""Attention of a diffusers layer, from queries, keys and values that are already there.

Which of torch's kernels computes an attention: measured at the start, where that is asked for.

    measure_attention(unet, layers, text_tokens, dtype, device)
    with kernel_for(query, key):
        ...                     # the kernel that was found fastest for their shape

torch chooses by rules of its own, the same for every chip. Here each shape that a UNet has is timed
once a process with every kernel there is, and one is chosen only where it is clearly faster and its
result is that of torch's own choice. What was chosen stays for the process, for all its models.

Kernels differ in rounding, so an edit is equal only within `fpe_core.agreement`'s tolerances.

"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from fpe_core.unet.attention import SelfAttentionLayer


def attend(attn: Any, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What diffusers' AttnProcessor2_0 does after its projections.

    Args:
        attn: the layer, `diffusers.models.attention_processor.Attention`.
        hidden: what went into it, (rows, tokens, channels); for its residual, if it has one.
        query: (rows, tokens, heads * d).
        key, value: (rows, tokens or text tokens, heads * d).

    Returns:
        (rows, tokens, channels).
    """
    query, key, value = (_split_heads(each, attn.heads) for each in (query, key, value))
    with kernel_for(query, key):
        attended = functional.scaled_dot_product_attention(query, key, value)
    joined = attended.transpose(1, 2).flatten(2)
    out: Tensor = attn.to_out[1](attn.to_out[0](joined))
    if attn.residual_connection:
        out = out + hidden
    if attn.rescale_output_factor != 1.0:  # by 1 it would be a pass over memory all the same
        out = out / attn.rescale_output_factor
    return out


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(rows, tokens, heads * d) to (rows, heads, tokens, d)."""
    rows, tokens, width = x.shape
    return x.view(rows, tokens, heads, width // heads).transpose(1, 2)


_CANDIDATES = {
    "cuda": (
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ),
    "cpu": (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
}
_ROWS = 2  # an edit's conditional and unconditional one
_ROUNDS = 5
_CLEARLY = 0.9  # of the time of torch's own choice
_MOST_MAP_BYTES = 2**30  # of a kernel that keeps the map
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
_HALF_TOLERANCE = 2e-2


@dataclass(frozen=True)
class AttentionShape:
    """What a kernel's speed depends on, but for the number of rows."""

    device: str
    dtype: torch.dtype
    heads: int
    head_dim: int
    tokens: int
    context_tokens: int


_chosen: dict[AttentionShape, SDPBackend | None] = {}


def chosen_kernels() -> dict[AttentionShape, SDPBackend | None]:
    """What was measured in this process so far; None where torch's own choice stands."""
    return dict(_chosen)


def kernel_for(query: Tensor, key: Tensor) -> AbstractContextManager[None]:
    """The context in which (rows, heads, tokens, d) are attended; nothing where none was chosen."""
    if not _chosen:
        return nullcontext()
    _, heads, tokens, head_dim = query.shape
    shape = AttentionShape(query.device.type, query.dtype, heads, head_dim, tokens, key.shape[2])
    kernel = _chosen.get(shape)
    return nullcontext() if kernel is None else _preferring(kernel)


def _preferring(kernel: SDPBackend) -> AbstractContextManager[None]:
    """torch's switch is the process's. So the others stay on, for what another thread attends that
    the kernel does not take; the plain one takes everything, and a CPU heeds no priority."""
    allowed = [kernel]
    if kernel != SDPBackend.MATH:
        allowed += [each for each in _CANDIDATES["cuda"] if each != kernel]
    context: AbstractContextManager[None] = sdpa_kernel(allowed, set_priority=True)
    return context


def measure_attention(
    unet: Any,
    layers: Sequence[SelfAttentionLayer],
    text_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Measures all shapes that a UNet attends in; each only once in a process.

    `layers`: its self-attention layers, with their tokens for the size of latents that are wanted.
    """
    for shape in shapes_of(unet, layers, text_tokens, dtype, device):
        if shape not in _chosen:
            _chosen[shape] = fastest_kernel(shape)


def shapes_of(
    unet: Any,
    layers: Sequence[SelfAttentionLayer],
    text_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[AttentionShape]:
    """The distinct shapes of a UNet's self- and cross-attention, in order of execution."""
    shapes: dict[AttentionShape, None] = {}
    for layer in layers:
        attn = unet.get_submodule(layer.processor_name.removesuffix(".processor"))
        size = attn.heads, attn.to_q.out_features // attn.heads, layer.tokens
        for context in (layer.tokens, text_tokens):
            shapes[AttentionShape(device.type, dtype, *size, context)] = None
    return list(shapes)


@torch.inference_mode()
def fastest_kernel(shape: AttentionShape) -> SDPBackend | None:
    """The kernel that is clearly faster than torch's own choice and right; None for that choice."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(_ROWS, shape.heads, tokens, shape.head_dim, generator=generator).to(
            device=shape.device, dtype=shape.dtype
        )
        for tokens in (shape.tokens, shape.context_tokens, shape.context_tokens)
    )
    expected = scaled_dot_product_attention(query, key, value)
    seconds: dict[SDPBackend | None, float] = {None: math.inf}
    for kernel in _CANDIDATES.get(shape.device, ()):
        if kernel != SDPBackend.MATH or _map_bytes(shape) <= _MOST_MAP_BYTES:
            made = _attended(kernel, query, key, value)
            if made is not None and _is_near(made, expected):
                seconds[kernel] = math.inf
    for _ in range(_ROUNDS):  # in turn: a busy moment of the machine meets all of them
        for each in seconds:
            seconds[each] = min(seconds[each], _seconds(each, query, key, value))
    best = min(seconds, key=lambda kernel: seconds[kernel])
    return best if seconds[best] < _CLEARLY * seconds[None] else None


def _attended(
    kernel: SDPBackend | None, query: Tensor, key: Tensor, value: Tensor
) -> Tensor | None:
    """None where the kernel does not take these tensors."""
    if kernel is None:
        return scaled_dot_product_attention(query, key, value)
    try:
        with sdpa_kernel(kernel):
            return scaled_dot_product_attention(query, key, value)
    except RuntimeError:
        return None


def _seconds(kernel: SDPBackend | None, query: Tensor, key: Tensor, value: Tensor) -> float:
    _wait(query.device)
    began = time.perf_counter()
    _attended(kernel, query, key, value)
    _wait(query.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _is_near(made: Tensor, expected: Tensor) -> bool:
    distance = (made.double() - expected.double()).norm() / expected.double().norm()
    return bool(distance <= _TOLERANCE.get(expected.dtype, _HALF_TOLERANCE))


def _map_bytes(shape: AttentionShape) -> int:
    return _ROWS * shape.heads * shape.tokens * shape.context_tokens * 4

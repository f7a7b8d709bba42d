"""What a UNet does between products and convolutions, in few passes over a GPU's memory.

torch's GroupNorm on CUDA does not keep channels_last, so every convolution after it begins with a
copy, and adding tensors in two layouts is slow: with Stable Diffusion 1.5's shapes more than half
of the GPU's time was spent outside convolutions, products and attention (docs/speed.md). So these
have Triton kernels (`fpe_core.unet.triton_kernels`):

    group norm      with the addition before it (bias of a convolution, timestep) and SiLU after it
    residual block  two of these and one sum in addition to its convolutions
    gated GELU      one pass

Where `runs_on` is False, on a CPU above all, callers use diffusers' own modules. So they do on a
GPU whose machine cannot build kernels: Triton needs a C compiler, Python's headers and a folder for
what it has built.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fpe_core.device import DEVICE_FAILED

try:
    from fpe_core.unet import triton_kernels as kernels
except ImportError:  # without a GPU there is usually no Triton
    _HAS_TRITON = False
else:
    _HAS_TRITON = True

_IN_REGISTERS = 16384
"""Elements of a group that one program holds at once."""
_TILE_TOKENS, _TILE_CHANNELS, _TILE_BLOCKS, _LINE = 128, 64, 32, 1024
_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_DEVICES = ("cuda",)
"""The types of devices that Triton builds kernels for."""
_log = logging.getLogger(__name__)


def runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether these kernels are used: on CUDA, if torch came with Triton and it can build kernels
    here, for floats of at most 32 bits.

    The first call for a device builds a kernel. Loading a checkpoint is one.
    """
    return _HAS_TRITON and device.type in _DEVICES and dtype in _TYPES and _can_build(device)


@functools.cache
def _can_build(device: torch.device) -> bool:
    """Whether a kernel can be built and run on a device; logs a warning if not, once a process."""
    try:
        with torch.cuda.device_of(torch.empty(0, device=device)):
            gated_gelu(torch.zeros(1, 2, device=device))
    except DEVICE_FAILED:
        raise
    except Exception as error:  # noqa: BLE001 - a compiler, a linker, a file system: any error
        _log.warning(
            "no GPU kernels of this program's own: Triton cannot build them here (%s: %s). torch's "
            "are used, which take longer (docs/speed.md). Triton needs a C compiler, Python's "
            "headers (python3-dev) and a folder that it may write to (TRITON_CACHE_DIR).",
            type(error).__name__,
            " ".join(str(error).split())[:300],
        )
        return False
    return True


def group_norm(
    hidden: Tensor, norm: nn.GroupNorm, *, added: Tensor | None = None, silu: bool = False
) -> Tensor:
    """`norm(hidden + added)`, followed by SiLU if `silu`.

    Args:
        hidden: (rows, channels, h, w) or (rows, channels, tokens), where `runs_on` is True.
        norm: with weight and bias.
        added: (1, channels), the same for all rows, or (rows, channels).

    Returns:
        of the same shape and type, channels_last.
    """
    return _group_norm(
        hidden, norm.num_groups, norm.weight, norm.bias, norm.eps, added=added, silu=silu
    )


def residual_block(resnet: Any, hidden: Tensor, embedding: Tensor) -> Tensor:
    """diffusers' ResnetBlock2D, of the kind that `is_plain_resnet` describes.

    Args:
        hidden: (rows, channels, h, w), where `runs_on` is True.
        embedding: (1, width), the same for all rows, or (rows, width).
    """
    first, second, shortcut = resnet.conv1, resnet.conv2, resnet.conv_shortcut
    of_step = resnet.time_emb_proj(functional.silu(embedding)) + first.bias
    inner = _convolved(first, group_norm(hidden, resnet.norm1, silu=True))
    inner = group_norm(inner, resnet.norm2, added=of_step, silu=True)
    inner = _convolved(second, inner)
    residual = hidden if shortcut is None else shortcut(hidden)
    return _added(inner, second.bias, residual)


def is_plain_resnet(resnet: Any) -> bool:
    """Whether `residual_block` computes what this block does; true of Stable Diffusion's."""
    return (
        type(resnet).__name__ == "ResnetBlock2D"
        and isinstance(resnet.nonlinearity, nn.SiLU)
        and resnet.time_embedding_norm == "default"
        and resnet.time_emb_proj is not None
        and not resnet.skip_time_act
        and resnet.upsample is None
        and resnet.downsample is None
        and resnet.output_scale_factor == 1.0
        and all(conv.bias is not None for conv in (resnet.conv1, resnet.conv2))
        and all(norm.affine for norm in (resnet.norm1, resnet.norm2))
    )


def gated_gelu(hidden: Tensor) -> Tensor:
    """The first half of the last axis times the GELU of the second: (..., 2 n) to (..., n)."""
    hidden = hidden.contiguous()
    *shape, both = hidden.shape
    out = hidden.new_empty((*shape, both // 2))
    grid = (hidden.numel() // both, _parts(both // 2, _LINE))
    kernels.gate_by_gelu[grid](hidden, out, both // 2, BLOCK=_LINE)
    return out


class ChannelsLastNorms(TorchFunctionMode):
    """While active, group norms of other libraries' modules keep channels_last, where `runs_on`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.group_norm and args and _is_for_us(args[0]):
            return _group_norm(*_named(*args, **kwargs))
        return func(*args, **kwargs)


def _is_for_us(values: Tensor) -> bool:
    return values.ndim in {3, 4} and runs_on(values.device, values.dtype)


def _named(
    values: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, int, Tensor, Tensor, float]:
    """All arguments of torch's function, with its defaults."""
    channels = values.shape[1]
    weight = values.new_ones(channels) if weight is None else weight
    bias = values.new_zeros(channels) if bias is None else bias
    return values, num_groups, weight, bias, eps


def _group_norm(
    hidden: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    added: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    hidden = _channels_last(hidden)
    channels, tokens = hidden.shape[1], hidden.shape[2:].numel()
    size = _power(tokens) * _power(channels // groups)
    norm = _norm_in_registers if size <= _IN_REGISTERS else _norm_in_blocks
    return norm(hidden, groups, weight, bias, eps=eps, added=added, silu=silu)


def _norm_in_registers(
    hidden: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    added: Tensor | None,
    silu: bool,
) -> Tensor:
    """One launch: a program holds a whole group."""
    out = torch.empty_like(hidden)
    (rows, channels), tokens = hidden.shape[:2], hidden.shape[2:].numel()
    tile = _power(tokens), _power(channels // groups)
    kernels.normalise_group[rows, groups](
        hidden,
        hidden if added is None else added,
        weight,
        bias,
        out,
        tokens,
        channels,
        channels // groups,
        eps,
        _stride(added),
        HAS_ADDED=added is not None,
        SILU=silu,
        TOKENS=tile[0],
        CHANNELS=tile[1],
        num_warps=4 if tile[0] * tile[1] <= _IN_REGISTERS // 4 else 8,
    )
    return out


def _norm_in_blocks(
    hidden: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    added: Tensor | None,
    silu: bool,
) -> Tensor:
    """Three launches: moments of blocks of tokens, of groups, and the result."""
    out = torch.empty_like(hidden)
    (rows, channels), tokens = hidden.shape[:2], hidden.shape[2:].numel()
    blocks = _parts(tokens, _TILE_TOKENS)
    means, squares = hidden.new_empty((2, rows, blocks, channels), dtype=torch.float32)
    scales, shifts = hidden.new_empty((2, rows, channels), dtype=torch.float32)
    grid = blocks, rows, _parts(channels, _TILE_CHANNELS)
    tile = {"TOKENS": _TILE_TOKENS, "CHANNELS": _TILE_CHANNELS}
    kernels.moments_of_channels[grid](hidden, means, squares, tokens, channels, **tile)
    kernels.scales_of_group[rows, groups](
        means,
        squares,
        hidden if added is None else added,
        weight,
        bias,
        scales,
        shifts,
        tokens,
        channels,
        channels // groups,
        blocks,
        eps,
        _stride(added),
        HAS_ADDED=added is not None,
        TOKENS=_TILE_TOKENS,
        BLOCKS=_TILE_BLOCKS,
        CHANNELS=_power(channels // groups),
    )
    kernels.scale_and_shift[grid](hidden, scales, shifts, out, tokens, channels, SILU=silu, **tile)
    return out


def _stride(added: Tensor | None) -> int:
    """How far the next row's values are, 0 if all rows have the same."""
    return 0 if added is None or len(added) == 1 else added.shape[1]


def _convolved(convolution: nn.Conv2d, hidden: Tensor) -> Tensor:
    """The convolution without its bias, which torch would add in a separate pass."""
    return functional.conv2d(
        hidden,
        convolution.weight,
        None,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )


def _added(values: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`values` (rows, channels, h, w) plus `bias` (channels,) plus `residual`."""
    values, residual = _channels_last(values), _channels_last(residual)
    out = torch.empty_like(values)
    channels = values.shape[1]
    tokens = values.numel() // channels
    kernels.add_bias_and_residual[
        _parts(tokens, _TILE_TOKENS // 2), _parts(channels, _TILE_CHANNELS)
    ](
        values,
        bias,
        residual,
        out,
        tokens,
        channels,
        TOKENS=_TILE_TOKENS // 2,
        CHANNELS=_TILE_CHANNELS,
    )
    return out


def _channels_last(values: Tensor) -> Tensor:
    if values.ndim == 4:
        return values.contiguous(memory_format=torch.channels_last)
    return values.transpose(1, 2).contiguous().transpose(1, 2)


def _power(count: int) -> int:
    """The least power of two that is >= `count`."""
    return 1 << (count - 1).bit_length()


def _parts(count: int, size: int) -> int:
    return -(-count // size)

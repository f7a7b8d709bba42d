"""Triton kernels for CUDA, called by `fpe_core.unet.fused`.

Activations are (rows, tokens, channels) in memory, which is channels_last. All arithmetic is in
float32. Offsets are 64-bit: 4096 x 2048 px in 256 channels are 2 ** 31 values. Blocks of tokens are
the grid's x, because its y and z end at 65,535.
"""

import triton
import triton.language as tl


@triton.jit
def normalise_group(
    values,
    added,
    weight,
    bias,
    out,
    tokens,
    channels,
    group_channels,
    eps,
    added_stride,
    HAS_ADDED: tl.constexpr,
    SILU: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Normalises one group of one row that fits into registers."""
    token = tl.arange(0, TOKENS)[:, None].to(tl.int64)
    within = tl.arange(0, CHANNELS)[None, :]
    channel = tl.program_id(1) * group_channels + within
    is_channel = within < group_channels
    is_there = (token < tokens) & is_channel
    place = tl.program_id(0).to(tl.int64) * tokens * channels + token * channels + channel
    value = tl.load(values + place, mask=is_there, other=0.0).to(tl.float32)
    if HAS_ADDED:
        own = added + tl.program_id(0) * added_stride + channel
        value += tl.load(own, mask=is_channel, other=0.0).to(tl.float32)
        value = tl.where(is_there, value, 0.0)
    count = tokens * group_channels
    centred = value - tl.sum(tl.sum(value, axis=1), axis=0) / count
    centred = tl.where(is_there, centred, 0.0)
    variance = tl.sum(tl.sum(centred * centred, axis=1), axis=0) / count
    scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    result = centred * (scale / tl.sqrt(variance + eps)) + shift
    if SILU:
        result *= tl.sigmoid(result)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=is_there)


@triton.jit
def moments_of_channels(
    values,
    means,
    squares,
    tokens,
    channels,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Each channel's mean over a block of tokens, and its sum of squared deviations."""
    block, blocks = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    first = block * TOKENS
    token = first + tl.arange(0, TOKENS)[:, None]
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    is_there = (token < tokens) & is_channel[None, :]
    row = tl.program_id(1).to(tl.int64)
    place = row * tokens * channels + token * channels + channel[None, :]
    value = tl.load(values + place, mask=is_there, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / tl.minimum(TOKENS, tokens - first)
    centred = tl.where(is_there, value - mean[None, :], 0.0)
    kept = (row * blocks + block) * channels + channel
    tl.store(means + kept, mean, mask=is_channel)
    tl.store(squares + kept, tl.sum(centred * centred, axis=0), mask=is_channel)


@triton.jit
def scales_of_group(
    means,
    squares,
    added,
    weight,
    bias,
    scales,
    shifts,
    tokens,
    channels,
    group_channels,
    blocks,
    eps,
    added_stride,
    HAS_ADDED: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCKS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The scale and shift of each channel of one group of one row.

    Combines the blocks' moments as Chan, Golub and LeVeque (1979). `TOKENS`: of a block.
    """
    # Longer than 50 lines: a kernel is one function, and a third of it is its arguments.
    row = tl.program_id(0).to(tl.int64)
    within = tl.arange(0, CHANNELS)
    channel = tl.program_id(1) * group_channels + within
    is_channel = within < group_channels
    more = tl.zeros((CHANNELS,), tl.float32)
    if HAS_ADDED:
        own = added + row * added_stride + channel
        more = tl.load(own, mask=is_channel, other=0.0).to(tl.float32)
    count = tl.cast(tokens, tl.float32) * group_channels
    total = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)[:, None]
        is_there = (block < blocks) & is_channel[None, :]
        size = tl.minimum(TOKENS, tokens - block * TOKENS).to(tl.float32)
        mean = tl.load(means + (row * blocks + block) * channels + channel[None, :], mask=is_there)
        total += tl.sum(tl.where(is_there, (mean + more[None, :]) * size, 0.0), axis=0)
    of_group = tl.sum(total, axis=0) / count
    around = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)[:, None]
        is_there = (block < blocks) & is_channel[None, :]
        size = tl.minimum(TOKENS, tokens - block * TOKENS).to(tl.float32)
        place = (row * blocks + block) * channels + channel[None, :]
        off = tl.load(means + place, mask=is_there) + more[None, :] - of_group
        square = tl.load(squares + place, mask=is_there)
        around += tl.sum(tl.where(is_there, square + size * off * off, 0.0), axis=0)
    deviation = tl.sqrt(tl.sum(around, axis=0) / count + eps)
    scale = tl.load(weight + channel, mask=is_channel, other=0.0).to(tl.float32) / deviation
    shift = tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    tl.store(scales + row * channels + channel, scale, mask=is_channel)
    tl.store(shifts + row * channels + channel, shift + (more - of_group) * scale, mask=is_channel)


@triton.jit
def scale_and_shift(
    values,
    scales,
    shifts,
    out,
    tokens,
    channels,
    SILU: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Applies the channels' scales and shifts to a block of a row."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    is_there = (token < tokens) & is_channel[None, :]
    row = tl.program_id(1).to(tl.int64)
    place = row * tokens * channels + token * channels + channel[None, :]
    value = tl.load(values + place, mask=is_there, other=0.0).to(tl.float32)
    scale = tl.load(scales + row * channels + channel, mask=is_channel, other=0.0)
    shift = tl.load(shifts + row * channels + channel, mask=is_channel, other=0.0)
    result = value * scale[None, :] + shift[None, :]
    if SILU:
        result *= tl.sigmoid(result)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=is_there)


@triton.jit
def add_bias_and_residual(
    values,
    bias,
    residual,
    out,
    tokens,
    channels,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """`values` plus a bias for each channel plus `residual`. `tokens`: of all rows."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    is_channel = channel < channels
    is_there = (token < tokens) & is_channel[None, :]
    place = token * channels + channel[None, :]
    result = tl.load(values + place, mask=is_there, other=0.0).to(tl.float32)
    result += tl.load(bias + channel, mask=is_channel, other=0.0).to(tl.float32)[None, :]
    result += tl.load(residual + place, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=is_there)


@triton.jit
def gate_by_gelu(values, out, width, BLOCK: tl.constexpr):
    """The first half of `values`, (tokens, 2 * width), times the GELU of the second half."""
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = place < width
    value = tl.load(values + token * 2 * width + place, mask=is_there, other=0.0)
    gate = tl.load(values + token * 2 * width + width + place, mask=is_there, other=0.0)
    gate = gate.to(tl.float32)
    gate *= 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    result = value.to(tl.float32) * gate
    tl.store(out + token * width + place, result.to(out.dtype.element_ty), mask=is_there)

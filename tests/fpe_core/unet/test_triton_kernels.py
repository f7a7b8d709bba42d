"""Our kernels in Triton's interpreter, which runs on a CPU: their numbers, and large offsets.

`tests/gpu/test_kernels_on_gpu.py` runs them on a GPU. The interpreter has to be chosen before
Triton is imported, so this file is also the program that a test starts.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).parent.parent.parent.parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="torch came without Triton"
)


@needs_triton
@pytest.mark.parametrize("what", ["numbers", "large_offsets"])
def test_kernels_in_the_interpreter(what: str) -> None:
    """Failed before: `large_offsets`, whose offsets were computed in 32 bits."""
    found = subprocess.run(
        [sys.executable, __file__, what],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(_path())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-2000:]


def _path() -> list[str]:
    return [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _distance(made: Tensor, exact: Tensor) -> float:
    return float((made.double() - exact).norm() / exact.norm())


def numbers() -> None:
    """Group norms in registers and in blocks, gated GELU and sum, against torch's float64."""
    from fpe_core.unet import fused

    torch.manual_seed(0)
    for rows, channels, height, width, groups in [(2, 16, 4, 4, 4), (2, 64, 80, 64, 4)]:
        hidden = 2 * torch.randn(rows, channels, height, width) + 3
        norm = nn.GroupNorm(groups, channels).requires_grad_(False)
        norm.weight.normal_()
        norm.bias.normal_()
        for added in (torch.randn(1, channels), torch.randn(rows, channels)):
            made = fused.group_norm(hidden, norm, added=added, silu=True)
            exact = functional.group_norm(
                hidden.double() + added.double()[:, :, None, None],
                groups,
                norm.weight.double(),
                norm.bias.double(),
                norm.eps,
            )
            assert _distance(made, functional.silu(exact)) <= 2e-6
    hidden = torch.randn(3, 5, 34)
    value, gate = hidden.double().chunk(2, dim=-1)
    assert _distance(fused.gated_gelu(hidden), value * functional.gelu(gate)) <= 2e-6
    values, residual, bias = torch.randn(2, 8, 9, 7), torch.randn(2, 8, 9, 7), torch.randn(8)
    made = fused._added(values, bias, residual)
    assert _distance(made, (values + bias[:, None, None] + residual).double()) <= 2e-6


def large_offsets() -> None:
    """The kernels that work on blocks of a tensor with more than 2 ** 31 values.

    Only its first 64 channels are computed; the rest of its memory is never touched.
    """
    from fpe_core.unet import triton_kernels as kernels

    tokens, channels, of_block = 2**12 + 128, 2**19, 128
    blocks = tokens // of_block
    values = torch.empty(tokens, channels, dtype=torch.float16)
    assert values.numel() > 2**31
    torch.manual_seed(0)
    values[:, :64] = before = torch.randn(tokens, 64).half()
    means, squares = torch.empty(2, blocks, channels)
    tile = {"TOKENS": of_block, "CHANNELS": 64}
    kernels.moments_of_channels[blocks, 1, 1](values, means, squares, tokens, channels, **tile)
    by_block = before.double().view(blocks, of_block, 64)
    assert _distance(means[:, :64], by_block.mean(dim=1)) <= 1e-5
    assert _distance(squares[:, :64] / of_block, by_block.var(dim=1, unbiased=False)) <= 1e-5
    scales, shifts = torch.full((1, channels), 2.0), torch.full((1, channels), 1.0)
    kernels.scale_and_shift[blocks, 1, 1](
        values, scales, shifts, values, tokens, channels, SILU=False, **tile
    )
    assert torch.equal(values[:, :64], (before.float() * 2 + 1).half())
    bias = torch.ones(channels, dtype=torch.float16)
    kernels.add_bias_and_residual[2 * blocks, 1](
        values, bias, values, values, tokens, channels, TOKENS=64, CHANNELS=64
    )
    assert values.isfinite()[:, :64].all()


if __name__ == "__main__":
    {"numbers": numbers, "large_offsets": large_offsets}[sys.argv[1]]()

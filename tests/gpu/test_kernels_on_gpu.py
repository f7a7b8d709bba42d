"""Our kernels against torch's own, and passes as CUDA graphs against passes as they are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

from fpe_core.unet.cuda_graphs import CudaGraphs
from fpe_core.unet.fused import (
    ChannelsLastNorms,
    gated_gelu,
    group_norm,
    is_plain_resnet,
    residual_block,
    runs_on,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]

CUDA = torch.device("cuda")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Of the norm of the difference from float64's, as a share: a rounding or two."""

NORMS = [  # rows, channels, height, width, groups
    (4, 320, 64, 64, 32),
    (2, 1280, 8, 8, 32),
    (3, 640, 16, 16, 32),
    (2, 960, 33, 17, 32),
    (1, 128, 256, 130, 32),
    (2, 8, 1, 1, 4),
    (130, 64, 8, 8, 8),
]


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def distance(made: Tensor, exact: Tensor) -> float:
    return float((made.double() - exact.double()).norm() / exact.double().norm())


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Not centred: moments that forget the mean are wrong."""
    generator = torch.Generator(CUDA).manual_seed(sum(shape))
    return (2 * torch.randn(*shape, generator=generator, device=CUDA) + 3).to(dtype)


def random_norm(groups: int, channels: int, dtype: torch.dtype) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, device=CUDA, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(random(channels))
    norm.bias.copy_(random(channels) - 3)
    return norm


def test_there_are_kernels_here() -> None:
    assert all(runs_on(CUDA, dtype) for dtype in TOLERANCE)
    assert not runs_on(CUDA, torch.float64)
    assert not runs_on(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", NORMS)
@pytest.mark.parametrize(("adds", "silu"), [(False, False), (True, True)])
def test_group_norm_is_torch_s(
    shape: tuple[int, ...], dtype: torch.dtype, adds: bool, silu: bool
) -> None:
    *of_hidden, groups = shape
    hidden = random(*of_hidden, dtype=dtype).contiguous(memory_format=torch.channels_last)
    norm = random_norm(groups, of_hidden[1], dtype)
    added = random(of_hidden[0], of_hidden[1], dtype=dtype) if adds else None
    made = group_norm(hidden, norm, added=added, silu=silu)
    exact = hidden.double() + (added.double()[:, :, None, None] if added is not None else 0.0)
    exact = functional.group_norm(exact, groups, norm.weight.double(), norm.bias.double(), norm.eps)
    exact = functional.silu(exact) if silu else exact
    assert made.dtype == dtype
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert distance(made, exact) <= TOLERANCE[dtype]


def test_a_group_norm_of_more_than_2_31_values_is_torch_s() -> None:
    """An output of 4096 x 2048 px in the decoder: 65,536 blocks, and offsets beyond 32 bits."""
    hidden = torch.randn(1, 256, 2048, 4096, device=CUDA, dtype=torch.float16)
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    norm = random_norm(32, 256, torch.float16)
    made = group_norm(hidden, norm)
    for rows in (slice(0, 8), slice(-8, None)):  # the moments are those of the whole image
        moments = hidden.view(1, 32, 8, 2048, 4096).float().var_mean(dim=(2, 3, 4), unbiased=False)
        deviation, mean = ((each.repeat_interleave(8, 1)[..., None, None]) for each in moments)
        exact = (hidden[:, :, rows].float() - mean) / (deviation + norm.eps).sqrt()
        exact = exact * norm.weight.float()[:, None, None] + norm.bias.float()[:, None, None]
        assert distance(made[:, :, rows], exact) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("shape", [(2, 64, 9, 16), (2, 64, 4096), (1, 32, 7)])
def test_norms_of_modules_that_are_not_ours_are_torch_s(shape: tuple[int, ...]) -> None:
    norm, hidden = random_norm(8, shape[1], torch.float32), random(*shape)
    with ChannelsLastNorms():
        made = norm(hidden)
    assert distance(made, norm(hidden)) <= TOLERANCE[torch.float32]
    assert len(shape) == 3 or made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [(64, 64), (96, 64), (320, 320)])
def test_a_residual_block_is_diffusers(channels: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    resnet = ResnetBlock2D(in_channels=channels[0], out_channels=channels[1], temb_channels=40)
    resnet = resnet.requires_grad_(False).eval().to(CUDA, memory_format=torch.channels_last)
    assert is_plain_resnet(resnet)
    hidden, embedding = random(2, channels[0], 32, 32), random(1, 40)
    exact = resnet.double()(hidden.double(), embedding.double())
    made = residual_block(resnet.to(dtype), hidden.to(dtype), embedding.to(dtype))
    assert distance(made, exact) <= 3 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(2, 77, 2560), (3, 5, 34), (1, 4096, 10240)])
def test_a_gated_gelu_is_torch_s(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    hidden = random(*shape, dtype=dtype) - 3
    value, gate = hidden.double().chunk(2, dim=-1)
    assert distance(gated_gelu(hidden), value * functional.gelu(gate)) <= TOLERANCE[dtype]


class Product:
    """A product in many small steps, which take the host longer than the device, and its calls."""

    def __init__(self, size: int) -> None:
        self.weight = torch.randn(size, size, device=CUDA) / size**0.5
        self.calls = 0

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        self.calls += 1
        (value,) = inputs
        for _ in range(50):
            value = value @ self.weight
        return value, value + 1


def test_a_small_pass_becomes_a_graph_and_gives_the_same() -> None:
    product, graphs = Product(64), CudaGraphs()
    values = [torch.randn(8, 64, device=CUDA) for _ in range(8)]
    made = []
    for value in values:
        made.append(graphs.run("product", product, [value]))
        torch.cuda.synchronize()
    captured_after = product.calls
    assert captured_after < 8, "every pass was launched step by step"
    for value, outputs in zip(values, made, strict=True):
        for one, other in zip(outputs, product([value]), strict=True):
            assert distance(one, other) <= 1e-5, (
                "a later replay wrote over what an earlier one made"
            )
    calls = product.calls
    graphs.run("product", product, [torch.randn(4, 64, device=CUDA)])
    assert product.calls == calls + 1, "another shape is another pass"
    graphs.captures = False
    graphs.run("product", product, values[:1])
    assert product.calls == calls + 2


def test_a_pass_that_keeps_the_device_busy_is_not_captured() -> None:
    product, graphs = Product(8192), CudaGraphs()
    value = torch.randn(8192, 8192, device=CUDA)
    for _ in range(5):
        graphs.run("product", product, [value])
        torch.cuda.synchronize()
    assert product.calls == 5

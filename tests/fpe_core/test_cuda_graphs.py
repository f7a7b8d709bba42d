"""What CUDA graphs do where there is no GPU; tests/gpu has the rest."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fpe_core.cuda_graphs import CudaGraphs


def twice(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (2 * inputs[0],)


def too_large(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    raise torch.OutOfMemoryError("on purpose")


def test_memory_that_runs_out_is_told_and_ends_the_graphs() -> None:
    """They keep memory that somebody needs now."""
    graphs, value = CudaGraphs(), torch.ones(3)
    assert torch.equal(graphs.run("twice", twice, [value])[0], 2 * value)
    assert graphs.captures
    with pytest.raises(torch.OutOfMemoryError, match="on purpose"):
        graphs.run("too large", too_large, [value])
    assert not graphs.captures
    for _ in range(5):  # without it, the second would be timed by the device's events
        assert torch.equal(graphs.run("twice", twice, [value])[0], 2 * value)

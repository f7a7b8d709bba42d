"""torch.compile where it is sound: the parts of a UNet that hold no state of ours.

Residual blocks (convolutions, norms) and feed-forward layers do three quarters of the FLOPs of a
row in SD 1.5, and are pure functions of their input. Attention is left as it is: what its
processors do depends on the step and the row, and scaled_dot_product_attention is a fused kernel
already. Batches of other sizes may compile anew.
"""

from __future__ import annotations

from typing import Any

import torch

from fpe_core.errors import CheckpointError, ParameterError

_REGIONS = ("ResnetBlock2D", "FeedForward", "Downsample2D", "Upsample2D")


def compile_regions(network: torch.nn.Module, backend: str = "inductor") -> int:
    """Has the regions of a UNet or an autoencoder compiled when they first run; in place.

    Edits are equal within `fpe_core.agreement`'s tolerances. Returns how many modules that are.

    Raises:
        ParameterError: torch has no such backend.
    """
    known = compilers()
    if backend not in known:
        raise ParameterError(
            f"torch.compile has no backend {backend!r}; allowed: {', '.join(known)}"
        )
    regions: list[Any] = [m for m in network.modules() if type(m).__name__ in _REGIONS]
    for region in regions:
        region.compile(backend=backend)
    return len(regions)


def require_compiler(device: torch.device, backend: str = "inductor") -> None:
    """Has a trivial function compiled, so that a missing compiler is told before any edit is made.

    Raises:
        CheckpointError: torch cannot compile here.
    """
    try:
        add = torch.compile(torch.add, backend=backend)
        add(torch.ones(1, device=device), 1)
    except Exception as error:
        cause = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"model.compile: torch cannot compile for {device} here ({cause}); a CPU needs a C++ "
            "compiler such as g++, a GPU Triton. Without it: model.compile=false"
        ) from error


def compilers() -> tuple[str, ...]:
    """The backends that torch.compile has here."""
    return tuple(torch._dynamo.list_backends(exclude_tags=()))

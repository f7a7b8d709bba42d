"""Reads the tensors of a file: safetensors, or a pickle of tensors alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fpe_core.checkpoint.weights import Header
from fpe_core.errors import CheckpointError

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def content_of(path: Path, what: str) -> Any:
    """What a file holds: a mapping of tensors for .safetensors, anything for a pickle.

    A pickle is read with `weights_only`, which runs none of its code.

    Raises:
        CheckpointError: it is damaged, or a pickle of more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors raises Rust's, torch what a pickle brings it to
        raise CheckpointError(
            f"{what} {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def tensors_of(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        CheckpointError: as `content_of`; or it holds something else.
    """
    content = content_of(path, what)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{what} {path} holds something else than named tensors")
    return {str(name): each for name, each in content.items()}


def header_of(tensor: Tensor) -> Header:
    """A tensor as the header of a safetensors file describes it."""
    kind = str(tensor.dtype).removeprefix("torch.").upper()
    return Header(tuple(tensor.shape), _DTYPES.get(tensor.dtype, kind))

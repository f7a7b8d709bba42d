"""A UNet that diffusers computes in another way than we do is refused when it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import FeedForward
from torch.nn import functional

from fpe_core import CheckpointError, load_checkpoint
from fpe_core.unet.check import TOLERANCE, check_against_diffusers


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_installed_diffusers_agrees(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    check_against_diffusers(load_checkpoint(tiny_checkpoint, device="cpu", dtype=dtype).unet)


def test_another_activation_between_the_blocks_is_noticed(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later diffusers that scales a hidden state, by 1 % in one place of its forward pass."""
    usual = UNet2DConditionModel.forward

    def later(self: Any, sample: Any, *arguments: Any, **options: Any) -> Any:
        return usual(self, sample * 1.01, *arguments, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", later)
    with pytest.raises(CheckpointError, match=rf"diffusers {diffusers.__version__} computes"):
        load_checkpoint(tiny_checkpoint, device="cpu")


def test_a_feed_forward_of_another_formula_is_noticed(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both passes call it, so it is changed for diffusers' blocks alone: by what they pass on."""
    usual = UNet2DConditionModel.forward

    def later(self: Any, *arguments: Any, **options: Any) -> Any:
        with monkeypatch.context() as inside:
            gelu = functional.gelu
            inside.setattr(functional, "gelu", lambda x, **_: gelu(x, approximate="none") * 1.001)
            return usual(self, *arguments, **options)

    assert any(isinstance(m, FeedForward) for m in load_checkpoint(tiny_checkpoint).unet.modules())
    monkeypatch.setattr(UNet2DConditionModel, "forward", later)
    with pytest.raises(CheckpointError, match="in another way"):
        load_checkpoint(tiny_checkpoint, device="cpu")

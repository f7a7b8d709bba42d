"""A worker's short way to the networks' classes: the same classes, without torch's compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fpe_core import load_checkpoint

_LOAD = """
import sys
import fpe_core
from fpe_core.checkpoint import lean_imports
{before}
with lean_imports.lean_imports():
    checkpoint = fpe_core.load_checkpoint({folder!r}, device="cpu")
lean = "torch._dynamo" not in sys.modules and "diffusers.models.transformers" not in sys.modules
import diffusers, diffusers.hooks, diffusers.models.transformers, diffusers.models.unets
import torch, torch._dynamo, transformers
usual = diffusers.models.unets.UNet2DConditionModel, transformers.CLIPTextModel
same = diffusers.UNet2DConditionModel is usual[0] is type(checkpoint.unet)
same = same and isinstance(checkpoint.text_encoder, usual[1])
whole = hasattr(torch._dynamo, "config") and hasattr(diffusers.hooks, "ModelHook")
whole = whole and hasattr(diffusers.models.transformers, "Transformer2DModel")
print(lean, same, whole, sum(p.sum().item() for p in checkpoint.unet.parameters()))
"""


def load(folder: Path, before: str = "") -> list[str]:
    """Whether the import was lean, gave the same classes, left the libraries whole; the weights."""
    code = _LOAD.format(folder=str(folder), before=before)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("before", "is_lean"),
    [
        ("", "True"),
        # Libraries that ask for more than is known here: the usual way is taken.
        ("lean_imports._MARKS = ()", "False"),
    ],
)
def test_the_networks_are_those_of_the_libraries(
    tiny_checkpoint: Path, before: str, is_lean: str
) -> None:
    lean, same, whole, weights = load(tiny_checkpoint, before)
    assert (lean, same, whole) == (is_lean, "True", "True")
    usual = load_checkpoint(tiny_checkpoint, device="cpu").unet
    assert float(weights) == sum(p.sum().item() for p in usual.parameters())

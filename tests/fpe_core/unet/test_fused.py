"""Where Triton cannot build a kernel, torch's are used, with one warning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from fpe_core import Editor, load_checkpoint
from fpe_core.unet import fused

CPU = torch.device("cpu")
ERRORS = [
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
    FileNotFoundError(2, "No such file or directory", "/nonexistent/.triton"),
    PermissionError(13, "Permission denied", "/root/.triton"),
]
"""What Triton 3.7.1 raises at the first launch of a kernel, without gcc and without a cache."""


class _Unbuildable:
    """A Triton kernel whose launch raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._raise

    def _raise(self, *arguments: object, **options: object) -> None:
        raise self._error


@pytest.fixture(autouse=True)
def forget_what_was_tried() -> Iterator[None]:
    fused._can_build.cache_clear()
    yield
    fused._can_build.cache_clear()


def edit(checkpoint: Path, picture: Image.Image) -> torch.Tensor:
    editor = Editor(load_checkpoint(checkpoint, device="cpu"))
    (edits,) = editor.edit(editor.invert([picture]), [["a red cat", "a dog"]]).edits
    return torch.stack([each.latent for each in edits])


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_device_without_a_compiler_makes_the_same_edits_with_one_warning(
    error: Exception,
    tiny_checkpoint: Path,
    picture: Callable[..., Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Failed before: every edit of such a machine, as worker_died. A CPU stands for the GPU."""
    usual = edit(tiny_checkpoint, picture())
    unbuildable = SimpleNamespace(**dict.fromkeys(_KERNELS, _Unbuildable(error)))
    monkeypatch.setattr(fused, "kernels", unbuildable, raising=False)
    monkeypatch.setattr(fused, "_HAS_TRITON", True)
    monkeypatch.setattr(fused, "_DEVICES", ("cpu",))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(edit(tiny_checkpoint, picture()), usual)
        assert torch.equal(edit(tiny_checkpoint, picture()), usual)
    (warning,) = [each.getMessage() for each in caplog.records if each.name == fused.__name__]
    assert type(error).__name__ in warning
    assert "TRITON_CACHE_DIR" in warning


def test_a_kernel_that_can_be_built_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    class Buildable(_Unbuildable):
        def _raise(self, *arguments: object, **options: object) -> None:
            launched.append(arguments)

    kernels = SimpleNamespace(gate_by_gelu=Buildable(RuntimeError()))
    monkeypatch.setattr(fused, "kernels", kernels, raising=False)
    monkeypatch.setattr(fused, "_HAS_TRITON", True)
    monkeypatch.setattr(fused, "_DEVICES", ("cpu",))
    assert fused.runs_on(CPU, torch.float32)
    assert fused.runs_on(CPU, torch.float16)
    assert len(launched) == 1, "tried once"
    assert not fused.runs_on(CPU, torch.float64)


_KERNELS = (
    "normalise_group",
    "moments_of_channels",
    "scales_of_group",
    "scale_and_shift",
    "add_bias_and_residual",
    "gate_by_gelu",
)

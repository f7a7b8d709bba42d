"""The kernels of attention: what is chosen runs, what is wrong or not there is never chosen."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import profile

from fpe_core import Checkpoint, Editor, EditParameters, LayersByTokens
from fpe_core.agreement import LATENT_TOLERANCE, latent_distance
from fpe_core.unet import attend as attention_kernels
from fpe_core.unet.attend import (
    AttentionShape,
    chosen_kernels,
    fastest_kernel,
    kernel_for,
    measure_attention,
    shapes_of,
)
from fpe_core.unet.attention import self_attention_layers

PARAMETERS = EditParameters(
    steps=1, replaced_fraction=1.0, layers=LayersByTokens(16), width_px=64, height_px=64
)
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"
PLAIN = "aten::_scaled_dot_product_attention_math"
SHAPE = AttentionShape("cpu", torch.float32, heads=2, head_dim=8, tokens=16, context_tokens=5)


@pytest.fixture(autouse=True)
def nothing_chosen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels, "_chosen", {})


def shapes(checkpoint: Checkpoint) -> list[AttentionShape]:
    layers = self_attention_layers(checkpoint.unet, 8, 8)
    return shapes_of(checkpoint.unet, layers, 77, checkpoint.dtype, checkpoint.device)


def choose(checkpoint: Checkpoint, kernel: SDPBackend | None) -> None:
    attention_kernels._chosen.update(dict.fromkeys(shapes(checkpoint), kernel))


def kernels_run(checkpoint: Checkpoint, photos: list[Image.Image]) -> tuple[dict[str, int], object]:
    """How often each kernel ran in one edit, seen by the profiler, and the edit."""
    editor = Editor(checkpoint)
    with profile() as seen:
        inversion = editor.invert(photos[:1], ["a cat"], PARAMETERS)
        edit = editor.edit(inversion, [["a dog"]]).edits[0][0]
    counts = {event.key: event.count for event in seen.key_averages()}
    return {name: counts.get(name, 0) for name in (FUSED, PLAIN)}, edit.latent


def test_what_is_chosen_runs_in_every_layer_and_changes_no_edit(
    tiny: Checkpoint, photos: list[Image.Image]
) -> None:
    """Self- and cross-attention, replaced, recorded and ordinary; the autoencoder has its own."""
    before, expected = kernels_run(tiny, photos)
    choose(tiny, SDPBackend.MATH)
    after, made = kernels_run(tiny, photos)
    assert isinstance(made, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    # Inversion and edit are 32 layers each; the source's row is left at the thirteenth of sixteen.
    assert before[FUSED] - after[FUSED] == 32 + 2 * 12 + 32
    assert after[PLAIN] - before[PLAIN] == 32 + 2 * 12 + 32
    assert latent_distance(made, expected) <= LATENT_TOLERANCE[torch.float32]


def test_other_shapes_keep_torch_s_choice() -> None:
    attention_kernels._chosen[SHAPE] = SDPBackend.MATH
    query, key = torch.randn(3, 2, 16, 8), torch.randn(3, 2, 5, 8)

    def ran(key: torch.Tensor) -> set[str]:
        with profile() as seen, kernel_for(query, key):
            scaled_dot_product_attention(query, key, key)
        return {event.key for event in seen.key_averages()} & {FUSED, PLAIN}

    assert ran(key) == {PLAIN}
    assert ran(torch.randn(3, 2, 6, 8)) == {FUSED}


def test_every_shape_is_measured_once(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[AttentionShape] = []

    def count(shape: AttentionShape) -> None:
        asked.append(shape)

    monkeypatch.setattr(attention_kernels, "fastest_kernel", count)
    for height in (8, 8, 16):
        measure_attention(
            tiny.unet,
            self_attention_layers(tiny.unet, height, height),
            77,
            tiny.dtype,
            tiny.device,
        )
    assert len(asked) == len(set(asked)) == len(chosen_kernels())
    assert set(shapes(tiny)) < set(asked)
    assert {shape.context_tokens for shape in asked} == {77, 1, 4, 16, 64, 256}


def test_an_editor_measures_only_where_it_is_asked_to(
    tiny: Checkpoint, photos: list[Image.Image]
) -> None:
    Editor(tiny).invert(photos[:1], None, PARAMETERS)
    assert chosen_kernels() == {}
    Editor(tiny, measures=True).invert(photos[:1], None, PARAMETERS)
    assert set(chosen_kernels()) == set(shapes(tiny))


def timed_as(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Kernels take what is said here: which is faster is not for a test to depend on."""
    monkeypatch.setattr(
        attention_kernels,
        "_seconds",
        lambda kernel, *_: seconds["own" if kernel is None else kernel.name],
    )


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"own": 1.0, "FLASH_ATTENTION": 1.0, "MATH": 0.5}, SDPBackend.MATH),
        ({"own": 1.0, "FLASH_ATTENTION": 0.6, "MATH": 0.7}, SDPBackend.FLASH_ATTENTION),
        ({"own": 1.0, "FLASH_ATTENTION": 0.95, "MATH": 0.95}, None),
    ],
)
def test_a_kernel_is_chosen_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], expected: SDPBackend | None
) -> None:
    timed_as(monkeypatch, **seconds)
    assert fastest_kernel(SHAPE) == expected


def test_a_kernel_that_is_wrong_or_refuses_is_never_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed_as(monkeypatch, own=1.0, FLASH_ATTENTION=0.2, MATH=0.1, CUDNN_ATTENTION=0.0)
    monkeypatch.setitem(
        attention_kernels._CANDIDATES, "cpu", (SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH)
    )
    assert fastest_kernel(SHAPE) == SDPBackend.MATH, "cuDNN has none for a CPU"
    right = attention_kernels._attended

    def spoiled(kernel: SDPBackend | None, *tensors: torch.Tensor) -> torch.Tensor | None:
        made = right(kernel, *tensors)
        return made if made is None or kernel is None else made + 1e-2

    monkeypatch.setattr(attention_kernels, "_attended", spoiled)
    assert fastest_kernel(SHAPE) is None


def test_a_map_that_is_too_large_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    timed_as(monkeypatch, own=1.0, FLASH_ATTENTION=1.0, MATH=0.1)
    monkeypatch.setattr(attention_kernels, "_MOST_MAP_BYTES", 2 * 2 * 16 * 5 * 4 - 1)
    assert fastest_kernel(SHAPE) is None

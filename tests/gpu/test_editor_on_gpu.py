"""The editor on a CUDA GPU gives the edits of a CPU, for every dtype and batch.

The built-in model, whose trajectories are smooth: with random weights, rounding alone grows to
another image.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fpe_core import Checkpoint, Editor, load_checkpoint, load_scorer, score_edits
from fpe_core.agreement import LATENT_TOLERANCE, image_difference, image_tolerance, latent_distance
from fpe_core.still_life.benchmark.edits import edits_of_scene, seeds_of
from fpe_core.still_life.render import render
from fpe_core.unet.row_limit import rows_that_fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]

SOURCES, TARGETS = 4, 3
HALVES = (torch.float16, torch.bfloat16)
ROUNDING_LEVELS = {torch.float16: 4.0, torch.bfloat16: 8.0}
"""Bound on the mean difference from float32's images, of 255. On a CPU these edits are at most
0.8 and 3.6 apart, other edits of the same scenes 18 and more."""
CPU_TOLERANCE = 5e-4
"""Of latents in float32 against a CPU's: other kernels sum in another order from the first layer
on, where batches of one device differ in a few (`LATENT_TOLERANCE`)."""


@dataclass(frozen=True)
class Made:
    """Edits, flat."""

    images: Sequence[Image.Image]
    latents: Sequence[Tensor]
    unet_rows: int


def make(editor: Editor, sources: int = SOURCES, **parameters: Any) -> Made:
    """The first edits of held-out scenes, all in one call."""
    scenes = [edits_of_scene(seed)[:TARGETS] for seed in seeds_of("test", SOURCES)][:sources]
    inversion = editor.invert(
        [render(edits[0].source) for edits in scenes],
        [edits[0].source_prompt for edits in scenes],
        dataclasses.replace(editor.checkpoint.default_parameters, **parameters),
    )
    result = editor.edit(inversion, [[edit.target_prompt for edit in edits] for edits in scenes])
    flat = [edit for edits in result.edits for edit in edits]
    return Made(
        [edit.image for edit in flat],
        [edit.latent for edit in flat],
        result.unet_rows + inversion.unet_rows,
    )


def model(device: str, dtype: torch.dtype = torch.float32) -> Checkpoint:
    return load_checkpoint("builtin:still-life", device=device, dtype=dtype)


@pytest.fixture(scope="module")
def on_cpu() -> Made:
    return make(Editor(model("cpu")))


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Convolutions in float32 would be TF32's."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@contextmanager
def memory_left(room_bytes: int) -> Iterator[None]:
    """Leaves torch's allocator this much more than it holds now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_in_float32_the_edits_are_those_of_a_cpu(on_cpu: Made) -> None:
    made = make(Editor(model("cuda")))
    assert made.unet_rows == on_cpu.unet_rows
    distances = [latent_distance(*pair) for pair in zip(made.latents, on_cpu.latents, strict=True)]
    assert max(distances) <= CPU_TOLERANCE, distances
    assert not any(
        latent_distance(made.latents[i - 1], latent) <= CPU_TOLERANCE
        for i, latent in enumerate(on_cpu.latents)
    ), "other edits are as near"


@pytest.mark.parametrize("dtype", HALVES)
def test_in_half_precision_they_differ_by_its_rounding(on_cpu: Made, dtype: torch.dtype) -> None:
    made = make(Editor(model("cuda", dtype)))
    bound = ROUNDING_LEVELS[dtype]
    for i, (image, expected) in enumerate(zip(made.images, on_cpu.images, strict=True)):
        assert image_difference(image, expected).mean_levels <= bound
        other = image_difference(made.images[i - 1], expected)
        assert other.mean_levels > bound, "another edit is as near"


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_an_edit_is_the_same_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    checkpoint = model("cuda", dtype)
    together, alone = make(Editor(checkpoint)), make(Editor(checkpoint, max_rows=1), sources=1)
    for i, image in enumerate(alone.images):
        assert image_tolerance(dtype).admits(image_difference(image, together.images[i])), i
        if dtype in LATENT_TOLERANCE:
            assert latent_distance(alone.latents[i], together.latents[i]) <= CPU_TOLERANCE


def test_half_precision_is_what_a_gpu_takes_by_itself() -> None:
    checkpoint = load_checkpoint("builtin:still-life")
    assert (checkpoint.device.type, checkpoint.dtype) == ("cuda", torch.float16)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_step_waits_for_the_device() -> None:
    """Twice the steps do not make the host wait more often: it waits for images, not for steps."""

    def waits(steps: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                make(editor, steps=steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(each.message) for each in caught)

    editor = Editor(model("cuda", torch.float16))
    make(editor, steps=12)  # what happens the first times only: kernels, CUDA graphs
    few = waits(4)
    assert few > 0, "images have to come to the host"
    assert waits(8) == few


def test_memory_that_runs_out_halves_the_rows(
    on_cpu: Made, caplog: pytest.LogCaptureFixture
) -> None:
    editor = Editor(model("cuda"), max_rows=64)
    with caplog.at_level(logging.WARNING), memory_left(96 * 2**20):
        made = make(editor)
    assert "out of memory with" in caplog.text
    assert made.unet_rows == on_cpu.unet_rows, "a call that ran out of memory counts no row"
    for one, other in zip(made.latents, on_cpu.latents, strict=True):
        assert latent_distance(one, other) <= CPU_TOLERANCE


def test_two_processes_on_one_gpu_each_count_on_their_share() -> None:
    device, row_elements = torch.device("cuda"), 320 * 64 * 64 * 64
    whole, half = (rows_that_fit(device, row_elements, 2, share) for share in (1.0, 0.5))
    assert 2 <= half <= whole / 2 + 1


def test_scores_are_those_of_a_cpu(on_cpu: Made) -> None:
    edits = [edits_of_scene(seed)[:TARGETS] for seed in seeds_of("test", SOURCES)]
    flat = [edit for of_scene in edits for edit in of_scene]
    sources = [render(edit.source) for edit in flat]
    scores = [
        score_edits(
            sources,
            on_cpu.images,
            [edit.source_prompt for edit in flat],
            [edit.target_prompt for edit in flat],
            clip=load_scorer("builtin:still-life", device=device),
            which={"text_score", "directional_similarity"},
        )
        for device in ("cpu", "cuda")
    ]
    for one, other in zip(*scores, strict=True):
        assert one.text_score == pytest.approx(other.text_score, abs=5e-3)
        assert one.directional_similarity == pytest.approx(other.directional_similarity, abs=2e-2)

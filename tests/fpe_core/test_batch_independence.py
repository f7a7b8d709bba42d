"""The same edit gives the same image in every batch, within a stated tolerance.

In float64 the bound is seven orders of magnitude tighter: what is left in float32 is rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from fpe_core import (
    Checkpoint,
    Edit,
    Editor,
    EditParameters,
    Inversion,
    LayersByTokens,
    SyntheticSources,
    load_checkpoint,
)
from fpe_core.agreement import LATENT_TOLERANCE, image_difference, image_tolerance, latent_distance
from fpe_core.still_life.benchmark.edits import edits_of_scene, seeds_of
from fpe_core.still_life.render import render

SOURCES, TARGETS = 8, 4
REFERENCE = (0, 0)
"""The source and the target of the edit that is part of every batch below."""

Made = Mapping[tuple[int, int], Edit]


@dataclass(frozen=True)
class Batch:
    """All pairs of some sources and some targets, in these orders."""

    sources: Sequence[int]
    targets: Sequence[int]
    max_rows: int = 64


BATCHES = {
    "alone": Batch([0], [0]),
    "2, of one source": Batch([0], [1, 0]),
    "2, of two sources": Batch([5, 0], [0]),
    "8": Batch([3, 0, 6, 1], [2, 0]),
    "8, five rows at a time": Batch([0, 2, 4, 7], [0, 3], max_rows=5),
    "32": Batch(range(SOURCES), range(TARGETS)),
    "32, in another order, 24 rows at a time": Batch([6, 3, 7, 0, 5, 1, 4, 2], [2, 0, 3, 1], 24),
}

CASES = [
    *((subject, batch) for subject in ("tiny", "tiny, synthetic") for batch in BATCHES),
    ("still-life", "2, of two sources"),
    ("still-life", "8, five rows at a time"),
    ("still-life", "32, in another order, 24 rows at a time"),
    ("still-life, synthetic", "8"),
]
"""The built-in model takes about a hundred times as long, so fewer are tried."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint with something to edit."""

    checkpoint: Checkpoint
    parameters: EditParameters
    images: Sequence[Image.Image]
    source_prompts: Sequence[str]
    target_prompts: Sequence[Sequence[str]]
    synthetic: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.checkpoint.dtype

    def make(self, batch: Batch, parameters: EditParameters | None = None) -> Made:
        """The edits of a batch by (source, target)."""
        editor = Editor(self.checkpoint, max_rows=batch.max_rows)
        prompts = [[self.target_prompts[s][t] for t in batch.targets] for s in batch.sources]
        result = editor.edit(self._start(editor, batch.sources), prompts, parameters)
        return {
            (s, t): edit
            for s, edits in zip(batch.sources, result.edits, strict=True)
            for t, edit in zip(batch.targets, edits, strict=True)
        }

    def _start(self, editor: Editor, sources: Sequence[int]) -> Inversion | SyntheticSources:
        prompts = [self.source_prompts[s] for s in sources]
        if self.synthetic:
            return editor.synthesise(prompts, [100 + s for s in sources], self.parameters)
        return editor.invert([self.images[s] for s in sources], prompts, self.parameters)


def tiny_subject(checkpoint: Checkpoint, *, synthetic: bool) -> Subject:
    """Two of eight prompts are empty: an inversion without a prompt is a row like any other."""
    y, x = np.mgrid[0:64, 0:64] / 64
    planes = [[128 + 127 * np.sin(6 * x * s), 255 * y**s, 255 * np.abs(x - y)] for s in range(1, 9)]
    words = ["a cat", "a red car", "snow", "a green dog"]
    prompts = words + (words if synthetic else ["", "", "the cat", "a dog in snow"])
    return Subject(
        checkpoint,
        EditParameters(
            steps=6, guidance_scale=7.5, layers=LayersByTokens(16), width_px=64, height_px=64
        ),
        [Image.fromarray(np.stack(p, -1).astype(np.uint8)) for p in planes],
        prompts,
        [["a blue cat", "snow", "the red dog", "a photo of a car"]] * SOURCES,
        synthetic,
    )


def still_life_subject(checkpoint: Checkpoint, *, synthetic: bool) -> Subject:
    """Held-out scenes, and the first four edits of each, as the benchmark asks for them."""
    scenes = [edits_of_scene(seed)[:TARGETS] for seed in seeds_of("test", SOURCES)]
    return Subject(
        checkpoint,
        dataclasses.replace(checkpoint.default_parameters, steps=3),
        [render(edits[0].source) for edits in scenes],
        [edits[0].source_prompt for edits in scenes],
        [[edit.target_prompt for edit in edits] for edits in scenes],
        synthetic,
    )


@pytest.fixture(scope="module")
def still_life() -> Checkpoint:
    return load_checkpoint("builtin:still-life", device="cpu")


@pytest.fixture(
    scope="module", params=["tiny", "tiny, synthetic", "still-life", "still-life, synthetic"]
)
def subject(request: pytest.FixtureRequest, tiny: Checkpoint, still_life: Checkpoint) -> Subject:
    synthetic = request.param.endswith("synthetic")
    if request.param.startswith("tiny"):
        return tiny_subject(tiny, synthetic=synthetic)
    return still_life_subject(still_life, synthetic=synthetic)


@pytest.fixture(scope="module")
def alone(subject: Subject) -> Edit:
    """The reference edit, one row at a time."""
    return subject.make(Batch([REFERENCE[0]], [REFERENCE[1]], max_rows=1))[REFERENCE]


def latents_agree(one: Edit, other: Edit, dtype: torch.dtype) -> bool:
    return latent_distance(one.latent, other.latent) <= LATENT_TOLERANCE[dtype]


def images_agree(one: Edit, other: Edit, dtype: torch.dtype) -> bool:
    return image_tolerance(dtype).admits(image_difference(one.image, other.image))


@pytest.mark.parametrize(("subject", "batch"), CASES, indirect=["subject"])
def test_an_edit_is_the_same_in_any_batch(subject: Subject, alone: Edit, batch: str) -> None:
    made = subject.make(BATCHES[batch])
    assert len(made) == len(BATCHES[batch].sources) * len(BATCHES[batch].targets)
    assert latents_agree(made[REFERENCE], alone, subject.dtype)
    assert images_agree(made[REFERENCE], alone, subject.dtype)


def test_all_edits_of_a_batch_are_the_same_in_another_order(tiny: Checkpoint) -> None:
    for synthetic in (False, True):
        subject = tiny_subject(tiny, synthetic=synthetic)
        one = subject.make(BATCHES["32"])
        other = subject.make(BATCHES["32, in another order, 24 rows at a time"])
        assert one.keys() == other.keys()
        for key, edit in one.items():
            assert latents_agree(other[key], edit, subject.dtype), key
            assert images_agree(other[key], edit, subject.dtype), key


@pytest.mark.parametrize("model", ["tiny", "tiny, synthetic", "still-life"])
def test_in_float64_next_to_nothing_is_left(tiny_float64: Checkpoint, model: str) -> None:
    if model.startswith("tiny"):
        subject = tiny_subject(tiny_float64, synthetic=model.endswith("synthetic"))
        batch = BATCHES["32, in another order, 24 rows at a time"]
    else:
        checkpoint = load_checkpoint("builtin:still-life", device="cpu", dtype="float64")
        subject = still_life_subject(checkpoint, synthetic=False)
        batch = BATCHES["2, of two sources"]
    assert LATENT_TOLERANCE[torch.float64] <= 1e-6 * LATENT_TOLERANCE[torch.float32]
    alone = subject.make(Batch([0], [0], max_rows=1))[REFERENCE]
    made = subject.make(batch)[REFERENCE]
    assert latents_agree(made, alone, torch.float64)
    assert images_agree(made, alone, torch.float64)


def test_another_edit_is_not_the_same(subject: Subject, alone: Edit) -> None:
    """The comparison detects a guidance that is 0.1 % off, so it admits less than that."""
    scale = subject.parameters.guidance_scale
    guided = dataclasses.replace(subject.parameters, guidance_scale=scale * 1.001)
    others = {
        "another prompt": subject.make(Batch([0], [1]))[0, 1],
        "another source": subject.make(Batch([1], [0]))[1, 0],
        "guidance 0.1 % off": subject.make(Batch([0], [0]), guided)[REFERENCE],
    }
    for what, edit in others.items():
        assert not latents_agree(edit, alone, subject.dtype), what
        assert not images_agree(edit, alone, subject.dtype), what

"""The measurement of a checkpoint, with editors whose quality is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fpe_core.still_life import FACTORS, Scene, caption, render, sample_scene
from fpe_core.still_life.measure import edited_scene, measure

SEEDS = range(5)


@pytest.mark.parametrize("factor", FACTORS)
def test_an_edited_scene_has_another_value(factor: str) -> None:
    for seed in SEEDS:
        scene = sample_scene(seed)
        assert getattr(edited_scene(scene, factor, seed), factor) != getattr(scene, factor)


@pytest.mark.parametrize("factor", FACTORS)
def test_the_true_pictures_get_full_marks(factor: str) -> None:
    scenes = [edited_scene(sample_scene(seed), factor, seed) for seed in SEEDS]
    figures = measure(fake_editor(lambda index: scenes[index]), factor, SEEDS)
    assert (figures.obeyed, figures.shape_kept) == (1.0, 1.0)
    assert min(figures.inside_psnr_db, figures.outside_psnr_db) == pytest.approx(100.0)


@pytest.mark.parametrize("factor", ["colour", "background", "material"])
def test_pictures_left_as_they_were_get_none(factor: str) -> None:
    figures = measure(fake_editor(lambda index: sample_scene(SEEDS[index])), factor, SEEDS)
    assert (figures.obeyed, figures.shape_kept) == (0.0, 1.0)


def test_without_source_prompts_inversion_gets_none() -> None:
    editor = fake_editor(lambda index: sample_scene(SEEDS[index]))
    measure(editor, "colour", SEEDS, source_prompts=False)
    assert editor.prompts_seen is None
    measure(editor, "colour", SEEDS)
    assert editor.prompts_seen == [caption(sample_scene(seed)) for seed in SEEDS]


def fake_editor(answer: Callable[[int], Scene]) -> Any:
    """An editor that shows `answer(index)` whatever it was asked for."""
    editor = SimpleNamespace(prompts_seen=None)

    def invert(images: Sequence[Image.Image], prompts: list[str] | None, _parameters: Any) -> int:
        editor.prompts_seen = prompts
        return len(images)

    def edit(count: int, targets: Sequence[Sequence[str]], _parameters: Any) -> Any:
        assert len(targets) == count
        pictures = [SimpleNamespace(image=render(answer(index))) for index in range(count)]
        return SimpleNamespace(edits=[(picture,) for picture in pictures])

    editor.invert, editor.edit = invert, edit
    return editor

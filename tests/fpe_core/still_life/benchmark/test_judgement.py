"""The judge: full marks for exact answers, none for unchanged images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from fpe_core.still_life import FACTORS, counterfactual, object_mask, render, sample_scene
from fpe_core.still_life.benchmark.edits import BenchmarkEdit, edits_of_scene
from fpe_core.still_life.benchmark.judgement import (
    as_unit,
    fitted_error,
    intersection_over_union,
    judge,
    psnr_db,
    recovered_mask,
)

SEEDS = range(2000, 2006)


def edits_of(factor: str) -> list[BenchmarkEdit]:
    return [edit for seed in SEEDS for edit in edits_of_scene(seed, [factor])]


@pytest.mark.parametrize("factor", FACTORS)
def test_the_exact_answer_gets_full_marks(factor: str) -> None:
    for edit in edits_of(factor):
        found = judge(edit, render(edit.answer))
        assert (found.success, found.structure, found.score) == (True, 1.0, 1.0)
        assert found.read_value == edit.target_value
        assert found.psnr_db == pytest.approx(100.0)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_picture_left_as_it_was_has_not_obeyed(factor: str) -> None:
    for edit in edits_of(factor):
        found = judge(edit, render(edit.source))
        assert (found.success, found.score) == (False, 0.0)
        assert found.read_value == edit.source_value
        assert found.psnr_db < 30.0
        if found.kept_psnr_db is not None:  # what should not change did not
            assert found.kept_psnr_db > 40.0


def test_an_edit_that_changes_every_pixel_keeps_none_to_compare() -> None:
    scene = counterfactual(sample_scene(2000), style="poster", background="teal")
    edit = BenchmarkEdit(2000, "style", scene, counterfactual(scene, style="sketch"))
    assert judge(edit, render(edit.answer)).kept_psnr_db is None


def test_noise_of_an_autoencoder_changes_no_verdict() -> None:
    rng = np.random.default_rng(0)
    for edit in edits_of("material"):
        exact = as_unit(render(edit.answer))
        noisy = np.clip(exact + rng.normal(0.0, 0.03, exact.shape), 0.0, 1.0)
        found = judge(edit, Image.fromarray((noisy * 255).astype(np.uint8)))
        assert found.success
        assert found.structure > 0.93
        assert found.psnr_db == pytest.approx(30.5, abs=1.0)


def test_the_recovered_mask_is_the_renderer_s_and_a_rim() -> None:
    agreements = []
    for seed in range(4000, 4040):
        scene = sample_scene(seed)
        found, true = recovered_mask(as_unit(render(scene)), scene), object_mask(scene)
        agreements.append(intersection_over_union(found, true))
    assert np.mean(agreements) > 0.93
    assert min(agreements) > 0.75


@pytest.mark.parametrize("factor", ["colour", "material", "background", "style"])
def test_a_wrong_look_costs_no_structure(factor: str) -> None:
    """Only the outline counts: success says whether the look is right."""
    for edit in edits_of(factor):
        assert judge(edit, render(edit.source)).structure > 0.9


@pytest.mark.parametrize("factor", ["shape", "material"])
def test_another_pose_costs_structure_and_not_success(factor: str) -> None:
    """Dots in other places are dots, and a heart that came out larger is a heart."""
    for edit in edits_of(factor):
        pose = dataclasses.replace(
            edit.answer,
            radius=edit.answer.radius * 1.12,
            angle_deg=edit.answer.angle_deg + 7.0,
            centre_x=edit.answer.centre_x - 0.025,
        )
        found = judge(edit, render(pose))
        assert found.success
        assert found.structure < 0.95


def test_the_fit_finds_the_pose_and_starts_from_the_scene_s_own() -> None:
    scene = sample_scene(2004)
    exact = as_unit(render(scene, 64))
    assert fitted_error(exact, scene) == pytest.approx(0.0, abs=1e-6)
    moved = dataclasses.replace(scene, centre_x=scene.centre_x + 0.03, radius=scene.radius * 0.92)
    unfitted = float(np.mean((as_unit(render(moved, 64)) - exact) ** 2))
    assert fitted_error(exact, moved) < 0.2 * unfitted


def test_a_missing_moved_or_other_object_costs_structure() -> None:
    (edit,) = edits_of_scene(2000, ["colour"])
    scene = edit.answer
    emptied = np.full((128, 128, 3), 0.5, np.float32)
    assert recovered_mask(emptied, scene).sum() < 0.5 * object_mask(scene).sum()
    moved = np.roll(np.asarray(render(scene)), 24, axis=1)
    assert judge(edit, Image.fromarray(moved)).structure < 0.7
    other = counterfactual(scene, shape="ring" if scene.shape != "ring" else "star")
    assert judge(edit, render(other)).structure < 0.85


def test_measures_by_hand() -> None:
    first, second = np.zeros((2, 2, 3), np.float32), np.full((2, 2, 3), 0.1, np.float32)
    assert psnr_db(first, second) == pytest.approx(20.0, abs=1e-4)
    assert psnr_db(first, first) == 100.0
    left, top = np.array([[1, 0], [1, 0]], bool), np.array([[1, 1], [0, 0]], bool)
    assert intersection_over_union(left, top) == pytest.approx(1 / 3)
    assert intersection_over_union(left & top & False, left & False) == 1.0


def test_other_sizes_are_judged_alike() -> None:
    (edit,) = edits_of_scene(2001, ["background"])
    assert judge(edit, render(edit.answer, 64)).score == 1.0

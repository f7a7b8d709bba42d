"""Images and masks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fpe_core.still_life import FACTORS, counterfactual, object_mask, render, sample_scene
from fpe_core.still_life.scene import Scene


def pixels(scene: Scene, size_px: int = 128) -> np.ndarray:
    return np.asarray(render(scene, size_px)).astype(int)


@pytest.mark.parametrize("seed", range(6))
def test_a_scene_renders_the_same_every_time(seed: int) -> None:
    image = render(sample_scene(seed))
    assert (image.mode, image.size) == ("RGB", (128, 128))
    assert image.tobytes() == render(sample_scene(seed)).tobytes()


@pytest.mark.parametrize("seed", range(24))
def test_a_colour_edit_changes_the_object_and_nothing_else(seed: int) -> None:
    scene = sample_scene(seed)
    mask = object_mask(scene)
    assert mask.dtype == np.bool_
    assert mask.shape == (128, 128)
    assert 0.05 < mask.mean() < 0.5
    changed = np.zeros_like(mask)
    for colour in FACTORS["colour"]:
        changed |= (pixels(scene) != pixels(counterfactual(scene, colour=colour))).any(axis=-1)
    assert not (changed & ~mask).any()
    assert (changed & mask).sum() > 0.97 * mask.sum()


@pytest.mark.parametrize("seed", range(12))
def test_a_background_edit_leaves_the_inside_of_the_object_alone(seed: int) -> None:
    scene = sample_scene(seed)
    other = "pink" if scene.background != "pink" else "teal"
    changed = (pixels(scene) != pixels(counterfactual(scene, background=other))).any(axis=-1)
    assert changed[~object_mask(scene)].all()
    assert not changed[eroded(object_mask(scene))].any()


def test_geometry_does_not_depend_on_looks() -> None:
    scene = sample_scene(4)
    for factor in ("colour", "material", "background", "style"):
        for value in FACTORS[factor]:
            changed = counterfactual(scene, **{factor: value})
            assert np.array_equal(object_mask(changed), object_mask(scene))


@pytest.mark.parametrize("shape", FACTORS["shape"])
def test_every_shape_lies_inside_the_picture(shape: str) -> None:
    for seed in range(40):
        mask = object_mask(counterfactual(sample_scene(seed), shape=shape))
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert mask.any()
        assert not border.any()


def test_the_mask_scales_with_the_picture() -> None:
    scene = sample_scene(9)
    small, large = (object_mask(scene, size_px).mean() for size_px in (64, 256))
    assert small == pytest.approx(large, rel=0.15)
    assert render(scene, 96).size == (96, 96)


def eroded(mask: np.ndarray) -> np.ndarray:
    """Without a rim of two pixels, where object and background mix."""
    near = range(-2, 3)
    return np.logical_and.reduce(
        [np.roll(mask, shift, axis=(0, 1)) for shift in itertools.product(near, near)]
    )

"""Structure inside boxes and masks: the changes that it must ignore, and those it must detect."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageOps

from fpe_core import ParameterError
from fpe_core.image.boxes import Box
from fpe_core.scores.regions import BoxRegion, MaskRegion, region_of_box, region_of_mask
from fpe_core.still_life import counterfactual, object_mask, render, sample_scene
from fpe_core.still_life.benchmark.edits import seeds_of
from fpe_core.still_life.benchmark.measure_scores import area_under_curve
from fpe_core.still_life.benchmark.regions import HOLDS_IOU, box_around, moved_samples
from fpe_core.still_life.degrade import compressed

SCENE = dataclasses.replace(
    counterfactual(sample_scene(3000), shape="heart", colour="red", background="white"),
    radius=0.25,
    centre_x=0.5,
    centre_y=0.5,
)
SOURCE = render(SCENE)
MASK = object_mask(SCENE)
BOX = box_around(MASK)
assert BOX is not None
REGIONS = [region_of_box(SOURCE, BOX), region_of_mask(SOURCE, MASK)]

each_region = pytest.mark.parametrize("region", REGIONS, ids=["box", "mask"])


def structure(region: BoxRegion | MaskRegion, edit: Image.Image) -> float:
    found = region.structure_in(edit)
    assert found is not None
    return found


@each_region
def test_the_source_itself_has_all_of_it(region: BoxRegion | MaskRegion) -> None:
    assert structure(region, SOURCE) == pytest.approx(1.0)


@each_region
def test_light_and_colour_are_no_structure(region: BoxRegion | MaskRegion) -> None:
    assert structure(region, ImageOps.invert(SOURCE)) == pytest.approx(1.0, abs=0.01)
    dim = SOURCE.point(lambda level: level // 2 + 20)
    assert structure(region, dim) > 0.9
    for colour in ("blue", "yellow", "cyan"):
        assert structure(region, render(counterfactual(SCENE, colour=colour))) > 0.85


@each_region
def test_an_object_that_went_away_is_seen(region: BoxRegion | MaskRegion) -> None:
    right = structure(region, compressed(render(counterfactual(SCENE, colour="green")), 80))
    for change in ({"centre_x": 0.75}, {"centre_y": 0.25}, {"radius": 0.12}):
        wrong = compressed(render(dataclasses.replace(SCENE, **change)), 80)
        assert structure(region, wrong) < right - 0.2
    flat = Image.new("RGB", SOURCE.size, (90, 90, 90))
    assert structure(region, flat) == pytest.approx(0.0, abs=0.01)


def test_scores_tell_regions_that_hold_by_the_renderers_own_masks() -> None:
    """60 images of validation scenes whose objects were moved by known amounts."""
    samples = list(moved_samples(seeds_of("validation", 12)))
    for score, iou, least in (("box", "box_iou", 0.85), ("mask", "mask_iou", 0.9)):
        held, lost = (
            [s.scores[score] for s in samples if (getattr(s, iou) >= HOLDS_IOU) == right]
            for right in (True, False)
        )
        assert min(len(held), len(lost)) > 10
        assert area_under_curve(held, lost) > least, score


def test_where_nothing_is_to_be_seen_nothing_is_said() -> None:
    flat = Image.new("RGB", (64, 64), (90, 90, 90))
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    assert region_of_box(flat, Box(10, 10, 40, 40)).structure_in(SOURCE.resize((64, 64))) is None
    assert region_of_mask(flat, disc).structure_in(SOURCE.resize((64, 64))) is None
    everything = np.ones((128, 128), bool)
    assert region_of_mask(SOURCE, everything).structure_in(SOURCE) is None, "a mask without a rim"


def test_a_region_of_one_pixel_is_a_region() -> None:
    tiny = region_of_box(SOURCE, Box(64.2, 64.2, 64.9, 64.9)).structure_in(SOURCE)
    assert tiny is None or tiny == pytest.approx(1.0)


def test_what_does_not_fit_is_refused() -> None:
    for region in REGIONS:
        with pytest.raises(ParameterError, match="the same size"):
            region.structure_in(SOURCE.resize((64, 64)))
    with pytest.raises(ParameterError, match="area"):
        region_of_box(SOURCE, Box(128, 0, 140, 10))
    with pytest.raises(ParameterError, match="empty"):
        region_of_mask(SOURCE, np.zeros((128, 128), bool))
    with pytest.raises(ParameterError, match="that size"):
        region_of_mask(SOURCE, np.ones((64, 64), bool))

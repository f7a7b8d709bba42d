"""Scenes, captions and counterfactuals."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from fpe_core.still_life import FACTORS, caption, counterfactual, factors_in, sample_scene
from fpe_core.still_life.scene import FULL_PHRASINGS, PHRASINGS, grammar_words


def test_a_seed_gives_one_scene() -> None:
    assert sample_scene(11) == sample_scene(11)
    assert len({sample_scene(seed) for seed in range(50)}) == 50


def test_every_value_of_every_factor_occurs() -> None:
    scenes = [sample_scene(seed) for seed in range(300)]
    for factor, values in FACTORS.items():
        assert {getattr(scene, factor) for scene in scenes} == set(values)


def test_no_word_belongs_to_two_factors() -> None:
    words = [word for values in FACTORS.values() for word in values]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("seed", range(30))
def test_captions_parse_back_to_their_factors(seed: int) -> None:
    scene = sample_scene(seed)
    factors = {factor: getattr(scene, factor) for factor in FACTORS}
    assert factors_in(caption(scene)) == factors
    for phrasing in range(len(PHRASINGS)):
        named = factors_in(caption(scene, phrasing))
        assert named.items() <= factors.items()
        assert (named == factors) == (phrasing < FULL_PHRASINGS)


def test_the_article_follows_the_colour() -> None:
    scene = counterfactual(
        sample_scene(0), style="photo", material="plain", shape="heart", background="grey"
    )
    red, orange = counterfactual(scene, colour="red"), counterfactual(scene, colour="orange")
    assert caption(red) == "a photo of a red plain heart on a grey background"
    assert caption(orange) == "a photo of an orange plain heart on a grey background"


def test_grammar_words_cover_all_captions() -> None:
    words = set(grammar_words())
    for seed in range(40):
        for phrasing in range(len(PHRASINGS)):
            assert set(caption(sample_scene(seed), phrasing).replace(",", "").split()) <= words


def test_an_unknown_phrasing_says_which_there_are() -> None:
    with pytest.raises(ValueError, match=f"choose 0 to {len(PHRASINGS) - 1}"):
        caption(sample_scene(0), len(PHRASINGS))


def test_a_caption_that_contradicts_itself_is_an_error() -> None:
    with pytest.raises(ValueError, match="two values of colour"):
        factors_in("a red and green ball")
    assert factors_in("a red, RED ball and a dog") == {"colour": "red", "shape": "ball"}


def test_a_counterfactual_changes_the_named_factor_only() -> None:
    scene = sample_scene(3)
    changed = dataclasses.asdict(counterfactual(scene, background="pink"))
    assert changed == dataclasses.asdict(scene) | {"background": "pink"}


def test_a_counterfactual_names_what_is_allowed() -> None:
    scene = sample_scene(3)
    with pytest.raises(ValueError, match=r"no colour 'beige'; choose one of red, orange"):
        counterfactual(scene, colour="beige")
    with pytest.raises(ValueError, match=r"no factor 'size'; a scene has shape, colour"):
        counterfactual(scene, size="big")


def test_importing_the_world_does_not_import_the_model_libraries() -> None:
    code = "import sys, fpe_core.still_life; print({'diffusers', 'transformers'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr

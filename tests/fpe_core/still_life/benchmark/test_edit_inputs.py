"""What the renderer knows of an edit: the mask covers what changes, words are in the prompts."""

from __future__ import annotations

import numpy as np
import pytest

from fpe_core.editors.words import places_of
from fpe_core.still_life import FACTORS, render
from fpe_core.still_life.benchmark.edit_inputs import changed_region, changed_words, true_inputs
from fpe_core.still_life.benchmark.edits import edits_of_scene

SEEDS = range(2000, 2006)


@pytest.mark.parametrize("factor", ["shape", "colour", "material"])
def test_nothing_changes_outside_the_mask_of_an_edit_of_the_object(factor: str) -> None:
    for seed in SEEDS:
        (edit,) = edits_of_scene(seed, [factor])
        mask = changed_region(edit, 64)
        assert mask is not None
        source, answer = (np.asarray(render(each, 64)) for each in (edit.source, edit.answer))
        assert (source == answer)[~mask].all()
        assert (source != answer)[mask].any()
        assert 0.02 < mask.mean() < 0.7


def test_the_mask_of_a_background_is_all_but_the_object() -> None:
    for seed in SEEDS:
        background, colour = edits_of_scene(seed, ["background", "colour"])
        around, inside = changed_region(background, 64), changed_region(colour, 64)
        assert around is not None
        assert inside is not None
        assert np.array_equal(around, ~inside)


@pytest.mark.parametrize("factor", FACTORS)
def test_words_are_in_their_prompts(factor: str) -> None:
    for seed in SEEDS:
        (edit,) = edits_of_scene(seed, [factor])
        words = changed_words(edit)
        if factor == "style":
            assert words is changed_region(edit) is None, "a style has no region"
            continue
        assert words is not None
        assert len(places_of(words[0], edit.source_prompt)) == 1
        assert len(places_of(words[1], edit.target_prompt)) == 1
        assert edit.target_value in words[1].split()


def test_every_edit_has_a_seed_of_its_own() -> None:
    edits = [edit for seed in SEEDS for edit in edits_of_scene(seed)]
    assert len({true_inputs(edit).seed for edit in edits}) == len(edits)
    assert true_inputs(edits[0]).to_dict() == true_inputs(edits[0]).to_dict()

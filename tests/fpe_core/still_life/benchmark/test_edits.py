"""The benchmark's edits: which scenes, and what is changed in them."""

from __future__ import annotations

import dataclasses

import pytest

from fpe_core.still_life import FACTORS, factors_in, sample_scene
from fpe_core.still_life.benchmark.edits import edits_of_scene, seeds_of
from fpe_core.still_life.train.data import FIRST_TRAINING_SEED


@pytest.mark.parametrize("seed", range(2000, 2010))
def test_an_edit_changes_one_factor_and_nothing_else(seed: int) -> None:
    edits = edits_of_scene(seed)
    assert [edit.factor for edit in edits] == list(FACTORS)
    for edit in edits:
        assert edit.source == sample_scene(seed)
        assert edit.source_value != edit.target_value
        assert dataclasses.replace(edit.answer, **{edit.factor: edit.source_value}) == edit.source
        assert factors_in(edit.target_prompt) == {
            **factors_in(edit.source_prompt),
            edit.factor: edit.target_value,
        }


def test_an_edit_does_not_depend_on_which_others_are_asked_for() -> None:
    every = {edit.factor: edit for edit in edits_of_scene(2003)}
    assert edits_of_scene(2003, ["style", "colour"]) == [every["style"], every["colour"]]


def test_new_values_are_spread_over_all_values() -> None:
    edits = [edit for seed in seeds_of("test", 200) for edit in edits_of_scene(seed)]
    for factor, values in FACTORS.items():
        assert {edit.target_value for edit in edits if edit.factor == factor} == set(values)


def test_splits_share_no_scene_with_each_other_or_with_training() -> None:
    test, validation = set(seeds_of("test", 1000)), set(seeds_of("validation", 1000))
    assert not test & validation
    assert max(test | validation) < FIRST_TRAINING_SEED


@pytest.mark.parametrize(("split", "scenes"), [("train", 1), ("test", 0), ("test", 1001)])
def test_what_no_split_has_is_refused(split: str, scenes: int) -> None:
    with pytest.raises(ValueError, match=r"no split|1 to 1000"):
        seeds_of(split, scenes)

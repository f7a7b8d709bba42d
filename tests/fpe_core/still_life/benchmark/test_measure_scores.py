"""Areas under the curve by hand, and candidates that match their names."""

from __future__ import annotations

import pytest

from fpe_core.scores.edit_scores import EditScores
from fpe_core.still_life.benchmark.edits import edits_of_scene
from fpe_core.still_life.benchmark.measure_scores import area_under_curve, candidates, separation
from fpe_core.still_life.scene import FACTORS


def test_area_under_the_curve_by_hand() -> None:
    assert area_under_curve([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert area_under_curve([0.0, 1.0], [2.0, 3.0]) == 0.0
    assert area_under_curve([1.0, 3.0], [2.0, 1.0]) == pytest.approx((0.5 + 2) / 4)


def test_candidates_are_what_they_are_called() -> None:
    edits = [edit for seed in (3000, 3001, 3002) for edit in edits_of_scene(seed)]
    found = candidates(edits)
    for number, edit in enumerate(edits):
        other = edits[(number + len(FACTORS)) % len(edits)]
        of = {kind: scenes[number] for kind, scenes in found.items()}
        assert (of["correct"], of["unchanged"]) == (edit.answer, edit.source)
        assert of["other_scene"] == other.answer
        assert other.factor == edit.factor
        assert other.seed != edit.seed
        assert all(
            getattr(of["other_pose"], each) == getattr(edit.answer, each) for each in FACTORS
        )
        assert of["other_pose"].centre_x == other.source.centre_x != edit.source.centre_x
        wrong = getattr(of["wrong_value"], edit.factor)
        assert wrong not in {edit.source_value, edit.target_value}
        assert of["wrong_value"].centre_x == edit.source.centre_x


def test_less_distance_is_better_and_no_direction_is_none_at_all() -> None:
    scores = {
        "correct": [EditScores(0.9, 0.8, None, 0.1), EditScores(0.1, None, None, 0.5)],
        "wrong": [EditScores(0.5, None, None, 0.2), EditScores(0.5, 0.5, None, 0.1)],
    }
    areas = separation(scores, ["shape", "style"], None)
    assert areas["structure_distance"] == {"wrong": pytest.approx(1.5 / 4)}
    assert areas["directional_similarity"] == {"wrong": pytest.approx(2.5 / 4)}
    assert areas["text_score"] == {"wrong": 0.5}
    assert separation(scores, ["shape", "style"], "shape")["text_score"] == {"wrong": 1.0}

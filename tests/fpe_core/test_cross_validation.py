"""Rules that hold for edits they were not fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from fpe_core import EditScores, ParameterError
from fpe_core.calibration import JudgedEdit, fit_rules, quality_of
from fpe_core.cross_validation import fit_for, fit_to_hold, lower_bound


def overlapping(count: int, seed: int) -> list[JudgedEdit]:
    """Every third edit bad; four scores that tell a part of them, each with noise."""
    rng = np.random.default_rng(seed)
    edits = []
    for number in range(count):
        is_good = number % 3 > 0
        up, down = rng.normal(0.7 if is_good else 0.35, 0.2, size=(2, 2))
        scores = EditScores(
            changed_share=up[0],
            directional_similarity=up[1],
            text_score=down[0],
            structure_distance=1 - down[1],
        )
        edits.append(JudgedEdit(scores, is_good))
    return edits


def precision_on(rules: Sequence[object], edits: list[JudgedEdit]) -> float:
    found = quality_of(rules, edits).precision  # type: ignore[arg-type]
    assert found is not None
    return found


def test_the_precision_that_was_wanted_is_had_on_other_edits() -> None:
    others = overlapping(3_000, seed=1)
    plain, held = [], []
    for seed in range(2, 6):
        edits = overlapping(240, seed)
        fitted = fit_to_hold(edits, precision=0.9)
        assert fitted.aim >= 0.9
        plain.append(precision_on(fit_rules(edits, 0.9), others))
        held.append(precision_on(fitted.rules, others))
    assert float(np.mean(held)) >= 0.9 > float(np.mean(plain))


def test_the_less_recall_is_wanted_the_more_precision_there_is() -> None:
    edits = overlapping(240, seed=2)
    few, many = (fit_to_hold(edits, precision=0.8, recall=recall) for recall in (0.3, 0.9))
    assert few.aim > many.aim
    assert few.sure_precision > many.sure_precision >= 0.8
    assert many.sure_recall > few.sure_recall >= 0.3


def test_edits_of_one_source_are_left_out_together() -> None:
    good = [JudgedEdit(EditScores(ssim=0.9, text_score=0.9), True, "a") for _ in range(20)]
    bad = [JudgedEdit(EditScores(ssim=0.1, text_score=0.1), False, "b") for _ in range(20)]
    by_source = fit_to_hold([*good, *bad], 0.9).held_out
    assert (by_source.edits, by_source.accepted, by_source.good) == (20, 20, 0)
    alone = [JudgedEdit(edit.scores, edit.is_good) for edit in (*good, *bad)]
    one_by_one = fit_to_hold(alone, 0.9).held_out
    assert (one_by_one.edits, one_by_one.precision, one_by_one.recall) == (40, 1.0, 1.0)


def test_every_aim_is_tried_on_every_edit_and_higher_ones_accept_less() -> None:
    edits = overlapping(90, seed=9)
    low, high = fit_for(edits, [0.6, 0.98])
    assert low.held_out.edits == high.held_out.edits == 90
    assert low.rules == fit_rules(edits, 0.6)
    assert high.own.accepted < low.own.accepted
    assert high.held_out.accepted < low.held_out.accepted


def test_few_edits_are_sure_of_little() -> None:
    edits = [JudgedEdit(EditScores(text_score=0.5 * n), n > 0) for n in range(3)]
    fitted = fit_to_hold(edits, precision=0.95)
    assert fitted.sure_precision < 0.95
    assert fitted.aim == 1.0
    assert fitted.own.precision == 1.0


@pytest.mark.parametrize(("good", "accepted"), [(19, 20), (95, 100), (100, 100), (1, 2)])
def test_the_lower_bound_is_where_the_share_would_just_be_a_surprise(
    good: int, accepted: int
) -> None:
    bound = lower_bound(good, accepted)
    deviation = math.sqrt(bound * (1 - bound) / accepted)
    assert (good / accepted - bound) / deviation == pytest.approx(1.2816, abs=1e-6)


def test_nothing_accepted_is_sure_of_nothing() -> None:
    assert (lower_bound(0, 0), lower_bound(0, 10)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("is_good", "precision", "message"),
    [(False, 0.9, "no edit is judged good"), (True, 1.1, "precision must be 0 to 1")],
)
def test_what_cannot_be_fitted_to_hold_is_refused(is_good: bool, precision: float, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        fit_to_hold([JudgedEdit(EditScores(ssim=0.5), is_good)], precision)

"""Thresholds from judged edits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fpe_core import EditScores, ParameterError
from fpe_core.acceptance import RejectReason
from fpe_core.calibration import JudgedEdit, Quality, fit_rules, quality_of


def edits_with_two_faults(count: int = 200) -> list[JudgedEdit]:
    """Good ones; some that lost their layout; some that went the wrong way. Scores overlap."""
    rng = np.random.default_rng(5)
    found = []
    for number in range(count):
        fault = ("none", "none", "layout", "direction")[number % 4]
        distance = rng.normal(0.4 if fault == "layout" else 0.1, 0.06)
        direction = rng.normal(0.2 if fault == "direction" else 0.8, 0.12)
        scores = EditScores(structure_distance=distance, directional_similarity=direction)
        found.append(JudgedEdit(scores, is_good=fault == "none"))
    return found


def test_each_fault_finds_its_rule_and_other_edits_gain_by_it() -> None:
    edits = edits_with_two_faults(400)
    rules = fit_rules(edits[:200], precision=0.95)
    assert {rule.reason for rule in rules} == {
        RejectReason.STRUCTURE_LOST,
        RejectReason.WRONG_DIRECTION,
    }
    assert quality_of((), edits[200:]).precision == 0.5
    elsewhere = quality_of(rules, edits[200:])
    assert elsewhere.precision is not None
    assert elsewhere.precision > 0.9
    assert elsewhere.recall is not None
    assert elsewhere.recall > 0.9


def test_more_precision_costs_recall_and_never_less_than_asked_where_it_can_be_had() -> None:
    edits = edits_with_two_faults()
    recalls = []
    for precision in (0.5, 0.8, 0.95, 1.0):
        quality = quality_of(fit_rules(edits, precision), edits)
        assert quality.precision is not None
        assert quality.precision >= precision
        recalls.append(quality.recall)
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[0] == 1.0


def test_nothing_is_ruled_where_every_edit_is_good() -> None:
    edits = [JudgedEdit(EditScores(structure_distance=0.1 * n), is_good=True) for n in range(5)]
    assert fit_rules(edits) == ()


def test_scores_that_tell_nothing_give_the_best_that_can_be_had() -> None:
    edits = [JudgedEdit(EditScores(text_score=0.5), is_good=n % 2 == 0) for n in range(10)]
    rules = fit_rules(edits, precision=0.99)
    assert quality_of(rules, edits) == Quality(edits=10, good=5, accepted=10, accepted_good=5)


def test_a_score_that_is_missing_breaks_no_rule() -> None:
    edits = [
        JudgedEdit(EditScores(changed_share=0.5), is_good=True),
        JudgedEdit(EditScores(), is_good=True),
        JudgedEdit(EditScores(changed_share=0.0), is_good=False),
    ]
    (rule,) = fit_rules(edits, precision=1.0)
    assert (rule.reason, rule.at_least) == (RejectReason.NO_CHANGE, 0.5)
    assert quality_of([rule], edits).accepted == 2


@pytest.mark.parametrize(
    ("score", "good", "bad", "bound"),
    [
        ("lpips", 0.2, 0.6, "at_most"),
        ("ssim", 0.9, 0.4, "at_least"),
        ("psnr_db", 30.0, 12.0, "at_least"),
        ("image_similarity", 0.9, 0.5, "at_least"),
        ("sharpness_ratio", 1.0, 0.2, "at_least"),
    ],
)
def test_other_scores_stand_for_the_structure_where_they_tell(
    score: str, good: float, bad: float, bound: str
) -> None:
    edits = [
        JudgedEdit(EditScores(**{score: value * (1 + 0.01 * number)}), value == good)
        for number in range(10)
        for value in (good, bad)
    ]
    (rule,) = fit_rules(edits, precision=1.0)
    assert (rule.score, rule.reason) == (score, RejectReason.STRUCTURE_LOST)
    assert getattr(rule, bound) is not None
    assert quality_of([rule], edits) == Quality(20, 10, 10, 10)


def test_the_score_that_tells_most_stands_for_a_reason() -> None:
    rng = np.random.default_rng(1)
    edits = [
        JudgedEdit(EditScores(structure_distance=rng.uniform(), ssim=0.9 if good else 0.3), good)
        for good in [True, False] * 20
    ]
    (rule,) = fit_rules(edits, precision=1.0)
    assert rule.score == "ssim"


def test_pictures_that_are_equal_make_no_bound() -> None:
    edits = [
        JudgedEdit(EditScores(psnr_db=value), good)
        for value, good in ((math.inf, True), (math.inf, True), (20.0, True), (10.0, False))
    ]
    (rule,) = fit_rules(edits, precision=1.0)
    assert rule.at_least == 20.0


def test_what_changed_nothing_is_told_first_at_the_cost_of_no_good_edit() -> None:
    edits = [
        JudgedEdit(EditScores(changed_share=0.4 - 0.01 * n, text_score=0.8), is_good=True)
        for n in range(20)
    ] + [
        JudgedEdit(EditScores(changed_share=share, text_score=0.3), is_good=False)
        for share in (0.0, 0.05, 0.3, 0.4)
    ]
    first, second = fit_rules(edits, precision=1.0)
    assert (first.reason, second.reason) == (RejectReason.NO_CHANGE, RejectReason.OFF_TARGET)
    assert first.at_least == pytest.approx((0.4 - 0.19) / 2)
    assert quality_of([first], edits).accepted_good == 20
    assert quality_of([first], edits).accepted == 22


def test_where_good_edits_change_nothing_such_are_not_rejected() -> None:
    edits = [JudgedEdit(EditScores(changed_share=share), is_good=True) for share in (0.0, 0.2)]
    assert fit_rules(edits) == ()


def test_shares_of_nothing_are_none() -> None:
    assert (Quality(3, 0, 0, 0).precision, Quality(3, 0, 0, 0).recall) == (None, None)


@pytest.mark.parametrize(
    ("edits", "precision", "message"),
    [
        ([JudgedEdit(EditScores(), is_good=False)], 0.9, "no edit is judged good"),
        ([], 0.9, "no edit is judged good"),
        ([JudgedEdit(EditScores(ssim=0.5), is_good=True)], 1.1, "precision must be 0 to 1"),
        (
            [JudgedEdit(EditScores(saturation_shift=0.1), is_good=True)],
            0.9,
            "no edit has a score to fit rules to; those are changed_share, ",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    edits: list[JudgedEdit], precision: float, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        fit_rules(edits, precision)

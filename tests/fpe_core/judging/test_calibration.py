"""Thresholds from judged edits.

Rules that hold for edits they were not fitted to.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest

from fpe_core import EditScores, ParameterError
from fpe_core.judging.calibration import (
    FITTED,
    JudgedEdit,
    Quality,
    fit_for,
    fit_rules,
    fit_to_hold,
    lower_bound,
    quality_of,
)
from fpe_core.judging.rules import RejectReason


def test_memory_does_not_grow_with_the_choices_of_rules() -> None:
    """Every edit against every choice of rules at once would take 10 kB an edit, 0.6 GB here."""
    rng = np.random.default_rng(3)
    names = sorted(FITTED)
    edits = [
        JudgedEdit(EditScores(**dict(zip(names, values, strict=True))), is_good=values[0] > 0.3)
        for values in rng.random((60_000, len(names))).tolist()
    ]
    tracemalloc.start()
    try:
        rules = fit_rules(edits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rules
    assert peak < 200e6


def edits_with_two_faults(count: int = 200) -> list[JudgedEdit]:
    """Good edits, some that lost their layout, and some in the wrong direction. Scores overlap."""
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


def overlapping(count: int, seed: int) -> list[JudgedEdit]:
    """Every third edit is bad; four noisy scores each detect a part of them."""
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
    assert (good / accepted - bound) / deviation == pytest.approx(
        NormalDist().inv_cdf(0.9), abs=1e-6
    )


def test_nothing_accepted_is_sure_of_nothing() -> None:
    assert (lower_bound(0, 0), lower_bound(0, 10)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("is_good", "precision", "message"),
    [(False, 0.9, "no edit is judged good"), (True, 1.1, "precision must be 0 to 1")],
)
def test_what_cannot_be_fitted_to_hold_is_refused(
    is_good: bool, precision: float, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        fit_to_hold([JudgedEdit(EditScores(ssim=0.5), is_good)], precision)

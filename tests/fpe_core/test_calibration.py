"""Thresholds from judged edits."""

from __future__ import annotations

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


def test_shares_of_nothing_are_none() -> None:
    assert (Quality(3, 0, 0, 0).precision, Quality(3, 0, 0, 0).recall) == (None, None)


@pytest.mark.parametrize(
    ("edits", "precision", "message"),
    [
        ([JudgedEdit(EditScores(), is_good=False)], 0.9, "no edit is judged good"),
        ([], 0.9, "no edit is judged good"),
        ([JudgedEdit(EditScores(), is_good=True)], 1.1, "precision must be 0 to 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    edits: list[JudgedEdit], precision: float, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        fit_rules(edits, precision)

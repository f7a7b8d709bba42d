"""Rules over scores: what is accepted, and the reason of each rejection."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fpe_core import EditScores, ParameterError
from fpe_core.judging.rules import OTHER_TYPES, RejectReason, Rule, Rules

CHANGE = {"score": "changed_share", "at_least": 0.02, "reason": "no_change"}
LAYOUT = {"score": "structure_distance", "at_most": 0.2, "reason": "structure_lost"}


@pytest.mark.parametrize(
    ("rule", "value", "is_broken"),
    [
        (CHANGE, 0.02, False),
        (CHANGE, 0.0199, True),
        (LAYOUT, 0.2, False),
        (LAYOUT, 0.2001, True),
        (LAYOUT, math.inf, True),
        (CHANGE, math.nan, True),
        (LAYOUT, math.nan, True),
        (CHANGE, None, False),
        (LAYOUT, None, False),
    ],
)
def test_a_bound_is_an_allowed_value(
    rule: dict[str, Any], value: float | None, is_broken: bool
) -> None:
    assert Rule(**rule).broken_by(value) == is_broken


def test_the_first_broken_rule_gives_the_reason() -> None:
    both = EditScores(changed_share=0.01, structure_distance=0.5)
    one_way = Rules.from_dict({"colour": [CHANGE, LAYOUT]}).verdict("colour", both)
    the_other = Rules.from_dict({"colour": [LAYOUT, CHANGE]}).verdict("colour", both)
    assert one_way.reason is RejectReason.NO_CHANGE
    assert one_way.message == "changed_share 0.01 is below 0.02"
    assert the_other.reason is RejectReason.STRUCTURE_LOST
    assert the_other.message == "structure_distance 0.5 is above 0.2"
    assert not one_way.is_accepted


def test_rules_that_hold_or_have_no_score_are_passed_over() -> None:
    rules = Rules.from_dict({"colour": [CHANGE, LAYOUT]})
    for share in (0.02, None):
        scores = EditScores(changed_share=share, structure_distance=math.nan)
        verdict = rules.verdict("colour", scores)
        assert verdict.reason is RejectReason.STRUCTURE_LOST
        assert verdict.message == "structure_distance nan is above 0.2"


def test_what_breaks_no_rule_is_accepted() -> None:
    rules = Rules.from_dict({"colour": [CHANGE, LAYOUT]})
    assert rules.verdict("colour", EditScores(changed_share=0.5)).is_accepted
    assert rules.verdict("colour", EditScores()).message == ""


def test_types_without_rules_have_those_of_the_others() -> None:
    bad = EditScores(changed_share=0.0, structure_distance=1.0)
    rules = Rules.from_dict({"style": [], OTHER_TYPES: [LAYOUT]})
    assert rules.verdict("shape", bad).reason is RejectReason.STRUCTURE_LOST
    assert rules.verdict("", bad).reason is RejectReason.STRUCTURE_LOST
    assert rules.verdict("style", bad).is_accepted, "it has rules of its own: none"
    assert Rules.from_dict({"style": [LAYOUT]}).verdict("shape", bad).is_accepted
    assert Rules().verdict("shape", bad).is_accepted


def test_rules_travel_as_plain_values() -> None:
    values = {"colour": [CHANGE, LAYOUT], OTHER_TYPES: [CHANGE]}
    rules = Rules.from_dict(values)
    assert rules.to_dict() == values
    assert Rules.from_dict(rules.to_dict()) == rules
    assert rules.scores == {"changed_share", "structure_distance"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({**CHANGE, "score": "beauty"}, "no score 'beauty'"),
        ({**CHANGE, "reason": "dull"}, "no reason 'dull'"),
        ({**CHANGE, "reason": "source_not_reconstructed"}, "no reason 'source_not_reconstructed'"),
        ({**CHANGE, "at_most": 1.0}, "one of at_least and at_most"),
        ({"score": "ssim", "reason": "no_change"}, "one of at_least and at_most"),
        ({**CHANGE, "colour": 1}, "colour"),
        ({"score": "ssim", "at_least": 0.5}, "reason"),
    ],
)
def test_a_wrong_rule_is_refused_with_its_type(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=f"rules of 'style': .*{message}"):
        Rules.from_dict({"colour": [CHANGE], "style": [rule]})

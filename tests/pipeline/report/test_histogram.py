"""Every value is in a bin, every threshold in the range."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpe_core.judging.rules import RejectReason, Rule
from pipeline.report.histogram import MOST_BINS, histogram_of

RULE = Rule("ssim", RejectReason.NO_CHANGE, at_most=0.9)


@given(
    st.lists(
        st.tuples(st.floats(width=32, allow_nan=True, allow_infinity=True), st.booleans()),
        max_size=50,
    )
)
def test_every_value_is_counted_once(edits: list[tuple[float, bool]]) -> None:
    values = np.array([value for value, _ in edits], np.float64)
    is_accepted = np.array([accepted for _, accepted in edits], bool)
    found = histogram_of("ssim", "colour", values, is_accepted, [RULE])
    there = [(value, accepted) for value, accepted in edits if not math.isnan(value)]
    if not there:
        assert found is None
        return
    assert found is not None
    assert sum(found.accepted) == sum(accepted for _, accepted in there)
    assert sum(found.rejected) == sum(not accepted for _, accepted in there)
    assert len(found.accepted) == len(found.rejected) <= MOST_BINS
    assert found.low < 0.9 < found.high
    assert found.broken == sum(value > 0.9 for value, _ in there)


def test_equal_values_have_a_range_of_their_own() -> None:
    found = histogram_of("ssim", "", np.full(3, 0.5), np.ones(3, bool), [])
    assert found is not None
    assert found.low < 0.5 < found.high
    assert found.tallest == 3


def test_one_far_value_squeezes_no_others() -> None:
    values = np.append(np.linspace(0, 1, 1000), 1e6)
    found = histogram_of("ssim", "", values, np.ones(1001, bool), [])
    assert found is not None
    assert found.high == pytest.approx(1.0, abs=0.05)
    assert sum(found.accepted) == 1001


def test_only_rules_on_the_score_are_drawn() -> None:
    other = Rule("lpips", RejectReason.NO_CHANGE, at_least=5)
    found = histogram_of("ssim", "", np.array([0.5]), np.ones(1, bool), [RULE, other])
    assert found is not None
    assert found.rules == (RULE,)
    assert found.high < 2

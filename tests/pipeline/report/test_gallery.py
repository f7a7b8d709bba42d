"""The choice of edits for a report is bounded, fair, and the same every time."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from fpe_core.judging.rules import RejectReason, Rules
from fpe_core.scores.edit_scores import EditScores
from pipeline.ledger.outcome import EditOutcome
from pipeline.report.gallery import choose_edits, margins
from tests.builders.judged_run import RULES
from tests.builders.outcome_rows import failed, key, rejected, table_of

COLOUR = Rules.from_dict(RULES)


def edit(number: int, direction: float, kind: str = "colour", **scores: float) -> EditOutcome:
    """Accepted from 0.5 on, else rejected."""
    own = dataclasses.replace(key(number), edit_type=kind)
    values = EditScores(directional_similarity=direction, **scores)
    if direction < 0.5:
        return own.rejected(RejectReason.WRONG_DIRECTION, unet_rows=1.0, seconds=1.0, scores=values)
    return own.accepted(
        part="p", edited_file_name="p/e.png", unet_rows=1.0, seconds=1.0, scores=values
    )


def groups_of(table: pa.Table, rules: Rules, per_group: int, at_most: int) -> dict[int, set[str]]:
    chosen = choose_edits(table, rules, per_group=per_group, at_most=at_most)
    assert len({each.row for each in chosen}) == len(chosen)
    return {each.row: set(each.groups) for each in chosen}


def test_best_is_far_from_thresholds_and_borderline_near() -> None:
    table = table_of(*(edit(n, n / 20) for n in range(20)))
    groups = groups_of(table, COLOUR, 3, 99)
    assert {row for row, names in groups.items() if "best" in names} == {17, 18, 19}
    assert {row for row, names in groups.items() if "borderline" in names} == {9, 10, 11}
    assert {row for row, names in groups.items() if "rejected" in names} == {0, 1, 2}


def test_the_margin_is_the_nearest_threshold_in_standard_deviations() -> None:
    table = table_of(edit(0, 0.7, changed_share=0.03), edit(1, 0.9, changed_share=0.5))
    found = margins(table, COLOUR)
    assert found[0] == pytest.approx(0.01 / np.std([0.03, 0.5]))
    assert found[1] == pytest.approx((0.5 - 0.02) / np.std([0.03, 0.5]))
    assert margins(table_of(edit(0, 0.7, "style")), COLOUR)[0] != margins(table, COLOUR)[0]


def test_a_broken_rule_gives_a_margin_below_zero() -> None:
    table = table_of(*(edit(n, n / 20) for n in range(20)))
    is_rejected = np.array(table["outcome"].to_pylist()) == "rejected"
    assert ((margins(table, COLOUR) < 0) == is_rejected).all()


def test_types_without_rules_are_ranked_by_direction() -> None:
    table = table_of(*(edit(n, 0.5 + n / 20, "style") for n in range(9)))
    groups = groups_of(table, COLOUR, 2, 99)
    assert {row for row, names in groups.items() if "best" in names} == {7, 8}
    assert not any("borderline" in names for names in groups.values())


def test_every_reason_and_code_has_its_share_when_there_is_little_room() -> None:
    outcomes = [rejected(n, RejectReason.NO_CHANGE) for n in range(50)]
    outcomes += [rejected(n, RejectReason.OFF_TARGET) for n in range(50, 53)]
    outcomes += [failed(n, "decode_failed") for n in range(53, 60)]
    outcomes += [failed(60, "worker_died")]
    table = table_of(*outcomes)
    chosen = choose_edits(table, Rules(), per_group=24, at_most=8)
    assert len(chosen) == 8
    reasons = Counter(table["reason"][each.row].as_py() for each in chosen)
    assert set(reasons) == {"no_change", "off_target", "decode_failed", "worker_died"}


def test_no_group_is_larger_than_its_limit() -> None:
    table = table_of(*(edit(n, (n * 7 % 50) / 50) for n in range(50)))
    groups = Counter(g for names in groups_of(table, COLOUR, 5, 99).values() for g in names)
    # A tile that one group chose can be in a second one: never in more than it has room for.
    assert max(groups.values()) <= 5


def test_nothing_is_chosen_from_nothing() -> None:
    assert choose_edits(table_of(), COLOUR, per_group=5, at_most=5) == []

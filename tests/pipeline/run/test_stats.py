"""Counting a run, and stopping it when too much fails."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from fpe_core import EditParameters
from fpe_core.judging.rules import Rules
from fpe_core.scores.edit_scores import EditScores
from pipeline.cluster.actor_kinds import ActorKind
from pipeline.cluster.pool import Pool
from pipeline.errors import TooManyFailuresError
from pipeline.job.ending import FailuresSection
from pipeline.ledger.ledger import LedgerCounts
from pipeline.ledger.outcome import EditOutcome, outcomes_table
from pipeline.plan.plan import Plan
from pipeline.run.stats import STAGE_FIGURES, RunSummary, RunTotals, encode_stats
from tests.builders.outcome_rows import accepted, failed, rejected

LIMITS = FailuresSection(max_in_a_row=3, max_share=0.5, min_sources_for_share=10)


def totals_of(*batches: Iterable[EditOutcome]) -> RunTotals:
    totals = RunTotals()
    for batch in batches:
        totals.add(outcomes_table(batch))
    return totals


def test_outcomes_are_counted_by_kind_and_code() -> None:
    totals = totals_of([accepted(1), failed(2)], [failed(3, "nan_latent"), rejected(4), failed(5)])
    assert dict(totals.outcomes) == {"accepted": 1, "failed": 3, "rejected": 1}
    assert dict(totals.failures) == {"decode_failed": 2, "nan_latent": 1}
    assert totals.unet_rows == sum(
        outcome.unet_rows for outcome in (accepted(1), failed(2), failed(3), rejected(4), failed(5))
    )


# `accepted(n)` and its kin: edits 2 n and 2 n + 1 are those of source n.


def test_failures_in_a_row_stop_a_run_across_batches() -> None:
    totals = totals_of([accepted(0), failed(2)], [failed(4)])
    totals.check(LIMITS)
    totals.add(outcomes_table([failed(6)]))
    with pytest.raises(TooManyFailuresError, match=r"3 sources failed in a row.*decode_failed"):
        totals.check(LIMITS)


def test_a_good_source_ends_the_row() -> None:
    totals_of([failed(0), failed(2)], [accepted(4), failed(6), failed(8)]).check(LIMITS)


def test_a_bad_source_is_one_failure_however_many_edits_it_has() -> None:
    totals = totals_of([failed(0), failed(1), failed(2), failed(3)])
    assert (totals.sources, totals.failed_sources, totals.failed_in_a_row) == (2, 2, 2)
    totals.check(LIMITS)


def test_a_source_with_one_good_edit_has_not_failed() -> None:
    totals = totals_of([failed(0), failed(2)], [failed(4), accepted(5)])
    assert (totals.failed_sources, totals.failed_in_a_row) == (2, 0)


def test_the_share_counts_once_there_are_enough_sources() -> None:
    mixed = [o for n in range(0, 16, 4) for o in (failed(n), accepted(n + 2))]
    totals = totals_of(mixed, [failed(40)])
    totals.check(LIMITS)  # 5 of 9, and 9 are too few to tell
    totals.add(outcomes_table([accepted(42)]))
    totals.check(LIMITS)  # 5 of 10 is half, not more
    totals.add(outcomes_table([failed(44)]))
    with pytest.raises(TooManyFailuresError, match="6 of 11 sources failed"):
        totals.check(LIMITS)


def test_every_failure_code_has_one_example() -> None:
    totals = totals_of([failed(1), failed(3, "nan_latent")], [failed(5)])
    assert totals.examples == {
        "decode_failed": "edit 1 is broken",
        "nan_latent": "edit 3 is broken",
    }


def test_edits_that_a_rule_could_not_reject_are_counted() -> None:
    """Without a source prompt there is no directional similarity, and the rule on it is silent."""
    rules = Rules.from_dict(
        {
            "colour": [
                {"score": "directional_similarity", "at_least": 0.5, "reason": "wrong_direction"},
                {"score": "text_score", "at_least": 0.5, "reason": "off_target"},
            ]
        }
    )
    totals = RunTotals(rules)
    known = EditScores(text_score=0.9, directional_similarity=0.9)
    unknown = EditScores(text_score=0.9)
    outcomes = [
        replace(outcome, key=replace(outcome.key, edit_type=edit_type), scores=scores)
        for outcome, edit_type, scores in (
            (accepted(0), "colour", known),
            (accepted(2), "colour", unknown),
            (accepted(4), "colour", unknown),
            (accepted(6), "style", unknown),
            (rejected(8), "colour", unknown),
            (failed(10), "colour", EditScores()),
        )
    ]
    totals.add(outcomes_table(outcomes))
    plan = Plan("id", 6, 0, 6, 6, 0, 0, (), None, (), "model", EditParameters())
    assert totals.summary(plan, "/run").scores_missing == {"directional_similarity": 2}
    assert RunTotals().summary(plan, "/run").scores_missing == {}


def test_stages_are_added_up_and_the_busy_share_is_of_the_models_alone() -> None:
    totals = RunTotals()
    editing = {"rows": 4, "seconds": 6.0, "worker_seconds": 7.5}
    figures = {"edit": editing, "write": {"rows": 4, "retries": 1}}
    totals.add_stages(figures)
    totals.add_stages(figures)  # the second pass over lost blocks
    plan = Plan("id", 8, 0, 4, 4, 0, 0, (), None, (), "model", EditParameters())
    summary = totals.summary(plan, "/run")
    assert summary.stages["edit"] == {"rows": 8, "seconds": 12.0, "worker_seconds": 15.0}
    assert summary.stages["write"] == {"rows": 8, "retries": 2}
    assert summary.busy_share == 12.0 / 15.0
    assert set().union(*summary.stages.values()) <= STAGE_FIGURES.keys()


def test_a_summary_says_what_the_plan_says_of_approximation() -> None:
    exact = Plan("id", 8, 0, 4, 4, 0, 0, (), None, (), "model", EditParameters())
    assert RunTotals().summary(exact, "/run").approximation == ""
    fast = replace(exact, approximation="fast: 3 steps, all guided")
    assert RunTotals().summary(fast, "/run").approximation == "fast: 3 steps, all guided"


def test_rows_that_no_outcome_has_were_wasted() -> None:
    totals = totals_of([accepted(0), accepted(1)])  # 10 rows each
    totals.add_stages({"edit": {"unet_rows": 25.0}})
    plan = Plan("id", 8, 0, 4, 4, 0, 0, (), None, (), "model", EditParameters())
    summary = totals.summary(plan, "/run")
    assert (summary.unet_rows, summary.unet_rows_wasted, summary.wasted_share) == (20, 5, 0.2)
    totals.add(outcomes_table([accepted(2)]))
    found = totals.summary(plan, "/run")
    assert found.unet_rows_wasted == 0, "an earlier run had finished it: not made, not wasted"


def test_stats_hold_the_run_and_the_totals() -> None:
    summary = RunSummary(9, 4, 3, 1, 1, {"nan_latent": 1}, 2.0, 2.5, 50.0, 10.0, "/run")
    assert summary.edits_made == 5
    pool = Pool((ActorKind(2, 1.0, 0.0, 1, 0.5, later=1),), 4)
    data = encode_stats(
        summary, LedgerCounts(accepted=7, failed=2), pool=pool, workers={"b:1": 2, "a:1": 3}
    )
    values = json.loads(data)
    assert values["last_run"]["failures_by_code"] == {"nan_latent": 1}
    assert values["total"]["edits"] == 9
    of_kind = values["resources"].pop("kinds")[0]
    sizes = {"actors": 2, "later": 1, "groups_per_block": 4, "edits_per_block": 2048}
    assert values["resources"] == sizes | {"places": 0, "readers": None, "waiting_bytes": None}
    assert (of_kind["memory_share"], of_kind["gpus_per_actor"]) == (0.5, 0)
    assert list(values["edits_by_worker"]) == ["a:1", "b:1"]

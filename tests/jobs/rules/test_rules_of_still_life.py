"""jobs/rules/still_life.yaml on judged edits that are kept here: those of `fpe calibrate
--benchmark --type colour --type background`, 80 scenes of each split in four arms."""

from __future__ import annotations

import pathlib
from collections import Counter

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from fpe_core import SCORES, score_edits
from fpe_core.judging.calibration import quality_of
from fpe_core.judging.rules import RejectReason, Rules
from fpe_core.scores.edit_scores import EditScores
from fpe_core.still_life import render, sample_scene
from fpe_core.still_life.degrade import compressed
from jobs.commands.fit_rules import fit, rules_of
from jobs.commands.judgements import read_judgements
from jobs.job_file.ready_made import BUILTIN_FOLDER

JUDGED = pathlib.Path(__file__).parent / "judged"
TYPES = ("colour", "background")


@pytest.fixture(scope="module")
def rules() -> Rules:
    file = BUILTIN_FOLDER / "rules" / "still_life.yaml"
    return Rules.from_dict(yaml.safe_load(file.read_text())["judge"]["rules"])


@pytest.mark.parametrize("edit_type", TYPES)
def test_what_is_accepted_of_test_scenes_is_good(edit_type: str, rules: Rules) -> None:
    edits = read_judgements(JUDGED / "test.parquet")[edit_type]
    assert len(edits) == 320
    found = quality_of(rules.of(edit_type), edits)
    assert found.precision is not None
    assert found.precision >= 0.95
    assert found.recall is not None
    assert found.recall >= 0.80
    assert quality_of((), edits).precision < 0.90, "without rules it would be less"


def test_the_rules_are_those_that_validation_scenes_give(rules: Rules) -> None:
    judged = read_judgements(JUDGED / "validation.parquet")
    found = rules_of(fit(judged, precision=0.95, recall=0.8))
    for edit_type in TYPES:
        for one, other in zip(found.of(edit_type), rules.of(edit_type), strict=True):
            assert (one.score, one.reason) == (other.score, other.reason)
            assert (one.at_least, one.at_most) == pytest.approx((other.at_least, other.at_most))


def test_validation_and_test_scenes_are_others() -> None:
    seeds = [
        {int(seed) for seed in pq.read_table(JUDGED / f"{split}.parquet")["source_id"].to_pylist()}
        for split in ("validation", "test")
    ]
    assert seeds == [set(range(3000, 3080)), set(range(2000, 2080))]


@pytest.mark.parametrize("edit_type", TYPES)
def test_an_unedited_picture_is_no_change_whatever_else_it_is(edit_type: str, rules: Rules) -> None:
    """The ladder asks for less replacement then, and not for more guidance."""
    sources = [render(sample_scene(seed), 128) for seed in range(2000, 2008)]
    again = [compressed(source, quality=70) for source in sources]
    unknown, nothing = [None] * 8, [""] * 8
    found = score_edits(sources, again, unknown, nothing, which={"changed_share"})
    for scores in found:
        bad = EditScores(
            changed_share=scores.changed_share,
            text_score=0.0,
            directional_similarity=None,
            structure_distance=0.0,
        )
        assert rules.verdict(edit_type, bad).reason == RejectReason.NO_CHANGE


def test_what_goes_wrong_without_replacement_is_the_structure(rules: Rules) -> None:
    """docs/benchmark.md has the whole table."""
    found = {arm: reasons(rules, arm) for arm in ("fraction 0", "fraction 1", "guidance 1")}
    lost = found["fraction 0"]
    assert lost.most_common(1)[0][0] == RejectReason.STRUCTURE_LOST
    assert lost[RejectReason.STRUCTURE_LOST] > 0.8 * lost.total()
    assert found["fraction 1"].total() < 0.25 * lost.total(), "this model is hardly blocked"
    assert found["guidance 1"].most_common(1)[0][0] == RejectReason.WRONG_DIRECTION
    assert found["guidance 1"][RejectReason.NO_CHANGE] == 3


def reasons(rules: Rules, arm: str) -> Counter[RejectReason]:
    """Of the rejected edits of test scenes that an arm made."""
    table = pq.read_table(JUDGED / "test.parquet")
    rows = table.filter(pc.equal(table["arm"], arm)).to_pylist()
    verdicts = [
        rules.verdict(row["edit_type"], EditScores(**{name: row[name] for name in SCORES})).reason
        for row in rows
    ]
    return Counter(reason for reason in verdicts if reason is not None)

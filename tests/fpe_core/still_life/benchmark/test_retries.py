"""The benchmark of the retry ladder, on a tiny random model: it counts what was run."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from fpe_core import Editor, EditParameters, load_checkpoint
from fpe_core.judging.retry_ladder import Change, RetryLadder
from fpe_core.judging.rules import RejectReason, Rule, Rules
from fpe_core.scores.edit_scores import EditScores
from fpe_core.scores.score import score_edits
from fpe_core.still_life.benchmark.edits import seeds_of
from fpe_core.still_life.benchmark.retries import run_retries

FACTORS = ("colour", "background")
NOTHING = Change(replaced_fraction=0.0)
LADDER = RetryLadder({RejectReason.NO_CHANGE: (NOTHING,)}, most=1)


@pytest.fixture(scope="module")
def editor(tiny_checkpoint: pathlib.Path) -> Editor:
    return Editor(load_checkpoint(tiny_checkpoint, device="cpu"))


@pytest.fixture(scope="module")
def parameters(editor: Editor) -> EditParameters:
    return replace(editor.checkpoint.default_parameters, steps=2, replaced_fraction=0.5)


def by_psnr(*pictures_and_prompts: Sequence[Any]) -> Sequence[EditScores]:
    sources, edits, source_prompts, target_prompts = pictures_and_prompts
    which = frozenset({"psnr_db"})
    return score_edits(sources, edits, source_prompts, target_prompts, which=which)


def rules(at_least: float) -> Rules:
    return Rules({"other": (Rule("psnr_db", RejectReason.NO_CHANGE, at_least=at_least),)})


def test_rejected_edits_are_tried_again_and_all_rows_counted(
    editor: Editor, parameters: EditParameters
) -> None:
    limit, _ = editor._row_limits(parameters)
    before = limit.evaluated
    tried = list(
        run_retries(
            editor,
            seeds_of("test", 2),
            parameters,
            rules(1000.0),
            LADDER,
            score=by_psnr,
            factors=FACTORS,
        )
    )
    assert len(tried) == 4
    for each in tried:
        assert [one.parameters for one in each.attempts] == [
            parameters,
            NOTHING.applied_to(parameters),
        ]
        assert [one.reason for one in each.attempts] == [RejectReason.NO_CHANGE] * 2
        assert each.attempts[0].judgement != each.attempts[1].judgement
    counted = sum(one.unet_rows for each in tried for one in each.attempts)
    assert counted == pytest.approx(limit.evaluated - before)


def test_accepted_edits_are_left_alone(editor: Editor, parameters: EditParameters) -> None:
    scenes = seeds_of("test", 1)
    (first, second) = run_retries(
        editor, scenes, parameters, rules(0.0), LADDER, score=by_psnr, factors=FACTORS
    )
    assert [len(each.attempts) for each in (first, second)] == [1, 1]
    assert first.attempts[0].reason is None


def test_the_sources_are_the_scenes(editor: Editor, parameters: EditParameters) -> None:
    seen: list[Image.Image] = []

    def score(sources: Sequence[Image.Image], *others: Sequence[Any]) -> Sequence[EditScores]:
        seen.extend(sources)
        return by_psnr(sources, *others)

    tried = list(
        run_retries(editor, seeds_of("test", 2), parameters, rules(0.0), LADDER, score=score)
    )
    assert len(seen) == len(tried) == 10
    assert all(source == seen[0] for source in seen[:5])
    assert seen[5] != seen[0]

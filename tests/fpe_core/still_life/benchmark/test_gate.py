"""The benchmark of the gate: its sources, how it runs, and its figures on made-up results."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fpe_core import Checkpoint, Editor, EditParameters
from fpe_core.judging.reconstruction import measure_autoencoder
from fpe_core.still_life import render
from fpe_core.still_life.benchmark.edits import edits_of_scene
from fpe_core.still_life.benchmark.gate import (
    TriedEdit,
    TriedSource,
    gate_figures,
    is_good,
    run_gate_benchmark,
)
from fpe_core.still_life.benchmark.hard_sources import (
    FEW_STEPS,
    FOREIGN_KINDS,
    SCENE_KINDS,
    HardSource,
    hard_sources,
)
from fpe_core.still_life.benchmark.judgement import judge

SMALL = EditParameters(steps=2, guidance_scale=2.0, width_px=64, height_px=64)
KINDS = {*SCENE_KINDS, *FOREIGN_KINDS}


@pytest.fixture
def editor(tiny: Checkpoint) -> Editor:
    return Editor(tiny, max_rows=16)


def test_every_kind_comes_as_often_clean_ones_twice_and_no_scene_twice() -> None:
    sources = hard_sources("validation", 2)
    counts = {kind: [s.kind for s in sources].count(kind) for kind in KINDS}
    assert counts == {**dict.fromkeys(KINDS, 2), "clean": 4}
    assert len({source.seed for source in sources}) == len(sources)
    assert sources[0].seed == 3000
    assert [s.steps for s in sources if s.kind == "few_steps"] == list(FEW_STEPS)
    assert {s.steps for s in sources if s.kind != "few_steps"} == {None}
    with pytest.raises(ValueError, match="1000 scenes"):
        hard_sources("validation", 200)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_source_is_the_same_every_time_and_spoiled_by_its_kind(kind: str) -> None:
    source, other = HardSource(kind, 3000, "a"), HardSource(kind, 3001, "a")
    picture = np.asarray(source.image(64))
    assert picture.shape == (64, 64, 3)
    assert np.array_equal(picture, np.asarray(source.image(64)))
    assert not np.array_equal(picture, np.asarray(other.image(64)))
    clean = np.asarray(render(source.scene, 64))
    assert np.array_equal(picture, clean) == (kind in ("clean", "wrong_prompt", "few_steps"))
    assert np.array_equal(picture, clean) != source.is_spoiled
    if not source.is_foreign:
        spoiled = np.asarray(source.spoil(render(source.scene, 64)))
        assert np.array_equal(picture, spoiled), "an answer is spoiled as the source is"


def test_sources_are_edited_and_judged_and_foreign_ones_are_not(editor: Editor) -> None:
    few = [s for s in hard_sources("validation", 1) if s.kind in ("clean", "few_steps", "jpeg")]
    sources = [*few, HardSource("only_noise", 3500, "a cat")]
    tried = list(run_gate_benchmark(editor, sources, SMALL, factors=["colour"]))
    assert sorted(t.source.seed for t in tried) == [s.seed for s in sources]
    for each in tried:
        asked = [] if each.source.is_foreign else edits_of_scene(each.source.seed, ["colour"])
        assert [edit.edit for edit in each.edits] == asked
        (alone,) = measure_autoencoder(editor, [each.source.image(64)], SMALL)
        assert each.autoencoder_psnr_db == pytest.approx(alone, abs=1e-3)
        for edit in each.edits:
            answer = each.source.spoil(render(edit.edit.answer, 64))
            assert edit.is_askable == is_good(judge(edit.edit, answer))


def tried_by_hand(kind: str, seed: int, value: float, rights: list[bool]) -> TriedSource:
    edits = edits_of_scene(seed)[: len(rights)]
    outputs = [
        render(e.answer if right else e.source) for e, right in zip(edits, rights, strict=True)
    ]
    return TriedSource(
        HardSource(kind, seed, ""),
        value,
        tuple(TriedEdit(e, judge(e, o), True) for e, o in zip(edits, outputs, strict=True)),
    )


def test_a_figure_that_knows_and_one_that_does_not() -> None:
    tried = [
        tried_by_hand("clean", 3000, 40.0, [True, True]),
        tried_by_hand("clean", 3001, 35.0, [True]),
        tried_by_hand("jpeg", 3002, 20.0, [False]),
        tried_by_hand("jpeg", 3003, 15.0, [False, False]),
        TriedSource(HardSource("only_noise", 3004, ""), 10.0, ()),
    ]
    assert [is_good(e.judgement) for t in tried for e in t.edits] == [True] * 3 + [False] * 3
    knows = gate_figures(tried)
    blind = gate_figures([dataclasses.replace(each, autoencoder_psnr_db=1.0) for each in tried])
    assert (knows.auc, knows.caught, knows.auc_foreign) == (1.0, 1.0, 1.0)
    assert (knows.scenes_lowest_db, knows.foreign_highest_db) == (15.0, 10.0)
    assert (blind.auc, blind.caught, blind.auc_foreign) == (0.5, 0.0, 0.5)
    assert math.isnan(knows.auc_within_kinds), "no kind has both"
    assert knows.auc_low <= knows.auc <= knows.auc_high


def test_edits_that_cannot_be_judged_do_not_count() -> None:
    bad = tried_by_hand("clean", 3001, 99.0, [False])
    unaskable = dataclasses.replace(
        bad, edits=tuple(dataclasses.replace(e, is_askable=False) for e in bad.edits)
    )
    tried = [
        tried_by_hand("clean", 3000, 40.0, [True]),
        tried_by_hand("clean", 3002, 20.0, [False]),
    ]
    without, with_it = gate_figures(tried), gate_figures([*tried, unaskable])
    assert without.auc == with_it.auc == without.auc_within_kinds == 1.0
    assert math.isnan(without.foreign_highest_db)
    assert gate_figures([*tried, bad]).auc == 0.5

"""How the benchmark runs: what is edited, inverted and counted."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from fpe_core import Checkpoint, Editor, EditParameters, LayersByRange, row_counts
from fpe_core.editors.blended import BlendedLatent
from fpe_core.editors.diffedit import DiffEdit
from fpe_core.still_life import FACTORS, render, sample_scene
from fpe_core.still_life.benchmark.benchmark import (
    Arm,
    JudgedOutput,
    figures_by_factor,
    mean_scores,
    measure_floors,
    run_benchmark,
)
from fpe_core.still_life.benchmark.edit_inputs import true_inputs
from fpe_core.still_life.benchmark.edits import edits_of_scene
from fpe_core.still_life.benchmark.judgement import judge

SMALL = EditParameters(
    steps=3, guidance_scale=2.0, layers=LayersByRange(3, 13), width_px=64, height_px=64
)
NONE = dataclasses.replace(SMALL, replaced_fraction=0.0)


@pytest.fixture
def editor(tiny: Checkpoint) -> Editor:
    return Editor(tiny, max_rows=16)


def test_every_arm_judges_every_edit_of_every_scene(editor: Editor) -> None:
    judged = list(run_benchmark(editor, range(2000, 2010), [Arm("a", SMALL), Arm("b", NONE)]))
    asked = [edit for seed in range(2000, 2010) for edit in edits_of_scene(seed)]
    for arm in "ab":
        own = [each.edit for each in judged if each.arm == arm]
        assert own == asked
    assert all(each.output.size == (64, 64) for each in judged)
    assert judged[0].judgement == judge(judged[0].edit, judged[0].output)


def test_arms_with_the_same_steps_share_one_inversion(editor: Editor, monkeypatch: Any) -> None:
    inverted = []
    invert = editor.invert
    monkeypatch.setattr(
        editor, "invert", lambda images, *rest: inverted.append(rest) or invert(images, *rest)
    )
    arms = [Arm("a", SMALL), Arm("b", NONE), Arm("c", dataclasses.replace(SMALL, steps=2))]
    list(run_benchmark(editor, [2000], arms, factors=["colour"]))
    assert [parameters.steps for _, parameters in inverted] == [3, 2]
    assert inverted[0][0] == [edits_of_scene(2000)[0].source_prompt]
    inverted.clear()
    list(run_benchmark(editor, [2000], arms[:1], with_source_prompt=False))
    assert inverted[0][0] is None


def test_an_edit_is_what_the_editor_gives_for_it_alone(editor: Editor) -> None:
    judged = list(run_benchmark(editor, [2000, 2001], [Arm("a", SMALL)]))[-1]
    inversion = editor.invert([render(judged.edit.source, 64)], [judged.edit.source_prompt], SMALL)
    alone = editor.edit(inversion, [[judged.edit.target_prompt]], SMALL).edits[0][0].image
    difference = torch.tensor(list(alone.tobytes())) - torch.tensor(list(judged.output.tobytes()))
    assert difference.abs().max() <= 1


def test_inputs_reach_the_method_and_what_cannot_be_made_is_left_out(editor: Editor) -> None:
    masked = SMALL.edited_by(BlendedLatent())
    arms = [Arm("no mask", masked), Arm("mask", masked, true_inputs), Arm("fpe", SMALL)]
    judged = list(run_benchmark(editor, [2000, 2001], arms))
    made = {arm.name: [each for each in judged if each.arm == arm.name] for arm in arms}
    assert not made["no mask"]
    assert [each.edit.factor for each in made["mask"]] == [f for f in FACTORS if f != "style"] * 2
    assert len(made["fpe"]) == 10, "its inversion is there, although blended needs none"
    style = edits_of_scene(2000, ["style"])[0]
    assert arms[1].not_applicable(style, style.source_prompt) == "no mask"
    assert dataclasses.replace(arms[2], needs=frozenset({"blend_words"})).not_applicable(
        style, ""
    ) == ("no blend words")


def test_rows_of_an_edit_are_those_of_its_method_with_its_part_of_the_inversion(
    editor: Editor,
) -> None:
    parameters = [SMALL, SMALL.edited_by(BlendedLatent()), SMALL.edited_by(DiffEdit())]
    arms = [Arm(str(at), each, true_inputs) for at, each in enumerate(parameters)]
    for judged in run_benchmark(editor, [2000, 2001], arms):
        arm = arms[int(judged.arm)]
        given = [arm.inputs(edit, 64) for edit in edits_of_scene(judged.edit.seed)]
        given = [each for each in given if judged.arm != "1" or each.mask is not None]
        prompt = judged.edit.source_prompt
        rows = row_counts(arm.parameters, given, source_prompt=prompt).total / len(given)
        assert judged.unet_rows == pytest.approx(rows)
        assert judged.seconds > 0


def test_floors_of_one_step_chains(editor: Editor) -> None:
    """A random model reconstructs badly, but both floors are finite and in order of the seeds."""
    floors = list(measure_floors(editor, [2000, 2001], SMALL))
    assert [floor.seed for floor in floors] == [2000, 2001]
    assert all(0.0 < floor.inversion_psnr_db < 40.0 for floor in floors)
    assert all(0.0 < floor.autoencoder_psnr_db < 40.0 for floor in floors)


def test_means_are_by_arm_and_factor_and_factors_count_the_same() -> None:
    def judged(arm: str, factor: str, seed: int, right: bool) -> JudgedOutput:
        (edit,) = edits_of_scene(seed, [factor])
        output = render(edit.answer if right else sample_scene(seed))
        return JudgedOutput(arm, edit, output, judge(edit, output))

    results = [
        judged("a", "colour", 2000, True),
        judged("a", "colour", 2001, True),
        judged("a", "colour", 2002, False),
        judged("a", "style", 2000, False),
        judged("b", "style", 2000, True),
    ]
    figures = figures_by_factor(results)
    assert list(figures) == [("a", "colour"), ("a", "style"), ("b", "style")]
    assert (figures["a", "colour"].edits, figures["a", "style"].edits) == (3, 1)
    assert figures["a", "colour"].success == pytest.approx(2 / 3)
    assert figures["a", "colour"].psnr_db == pytest.approx(
        sum(each.judgement.psnr_db for each in results[:3]) / 3
    )
    assert mean_scores(results) == {"a": pytest.approx((2 / 3 + 0) / 2), "b": 1.0}


def test_factors_are_all_there_by_default(editor: Editor) -> None:
    judged = list(run_benchmark(editor, [2000], [Arm("a", NONE)]))
    assert [each.edit.factor for each in judged] == list(FACTORS)

"""ddim, fpe, sdedit, and the prompt of the source in place of the negative one."""

from __future__ import annotations

import pytest
import torch

from fpe_core import (
    Checkpoint,
    DdimEditing,
    EditInputs,
    Editor,
    EditParameters,
    FreePromptEditing,
    LayersByLevel,
    NotApplicableError,
    ParameterError,
    SdEdit,
)
from tests.fpe_core.editors.cases import (
    SOURCES,
    SQUARE,
    TARGETS,
    WIDE,
    Case,
    check_batches,
    check_exact,
    check_rows,
    check_wrong,
    photos,
)

SEEDS = [[EditInputs(seed=10 * s + n) for n in range(len(each))] for s, each in enumerate(TARGETS)]


def ddim(size=SQUARE, **changes) -> Case:
    def expected(naive, z_0, s, n):
        return naive.ddim(naive.invert(z_0, SOURCES[s]), TARGETS[s][n])

    return Case(DdimEditing(), expected, size=size, **changes)


def fpe(size=SQUARE, inversion="direct", **changes) -> Case:
    def expected(naive, z_0, s, n):
        negative = SOURCES[s] if inversion == "negative_prompt" else None
        trajectory = naive.invert(z_0, SOURCES[s])
        if naive.wrong == "empty_negative":
            negative = ""
        return naive.fpe(trajectory, SOURCES[s], TARGETS[s][n], 4, negative=negative)

    method = FreePromptEditing(**{"layers": LayersByLevel(2), **changes})
    return Case(method, expected, size=size, inversion=inversion)


def sdedit(size=SQUARE, **changes) -> Case:
    method = SdEdit(**changes)

    def expected(naive, z_0, s, n):
        return naive.sdedit(z_0, TARGETS[s][n], method.strength, SEEDS[s][n].seed)

    return Case(method, expected, SEEDS, size=size)


EDITORS = {
    "ddim": ddim,
    "fpe": fpe,
    "sdedit": sdedit,
    "fpe, negative prompt": lambda size=SQUARE: fpe(size, inversion="negative_prompt"),
}


@pytest.mark.parametrize("name", EDITORS)
def test_edits_equal_the_reference(checkpoint: Checkpoint, name: str) -> None:
    check_exact(checkpoint, EDITORS[name]())


@pytest.mark.parametrize("name", EDITORS)
def test_edits_of_another_shape_equal_the_reference(tiny_float64: Checkpoint, name: str) -> None:
    check_exact(tiny_float64, EDITORS[name](WIDE), max_rows=3, sources=[1])


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (sdedit(), "level"),
        (sdedit(), "seed"),
        (fpe(inversion="negative_prompt"), "empty_negative"),
        (fpe(inversion="negative_prompt"), "one_step_off"),
    ],
)
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, case, wrong) -> None:
    check_wrong(tiny, case, wrong, (1, 1))


@pytest.mark.parametrize("case", [ddim(), sdedit(), fpe(inversion="negative_prompt")])
def test_an_edit_is_the_same_in_any_batch(checkpoint: Checkpoint, case) -> None:
    check_batches(checkpoint, case)


@pytest.mark.parametrize("edits", [1, 3])
@pytest.mark.parametrize(
    ("case", "formula", "total"),
    [
        (ddim(), {}, (150, 348)),
        (fpe(), {"R": 40}, (190, 388)),
        (sdedit(), {"S": 40}, (80, 240)),
        (sdedit(strength=0.33), {"S": 16}, (32, 96)),
    ],
    ids=["ddim", "fpe", "sdedit", "sdedit 0.33"],
)
def test_rows_are_those_of_the_formula(tiny: Checkpoint, case, formula, total, edits) -> None:
    check_rows(tiny, case, edits, formula)
    assert eval(case.method.rows_formula, {"T": 50, "N": edits, **formula}) == total[edits > 1]


@pytest.mark.parametrize(("method", "total"), [("fpe", "90 + 99*N"), ("ddim", "51 + 99*N")])
@pytest.mark.parametrize("edits", [1, 3])
def test_the_source_lends_its_row_where_it_has_the_same_prompt(
    tiny: Checkpoint, method: str, total: str, edits: int
) -> None:
    """Negative-prompt inversion costs no row; with maps of the source it costs one less."""
    from fpe_core import method_named, row_counts

    parameters = EditParameters(
        steps=50, width_px=64, height_px=64, inversion="negative_prompt"
    ).edited_by(method_named(method)())
    editor = Editor(tiny)
    inversion = editor.invert(photos(1, SQUARE), ["the cat"], parameters)
    rows = inversion.unet_rows + editor.edit(inversion, [["a dog"] * edits]).unet_rows
    assert rows == eval(total, {"N": edits})
    inputs = [EditInputs()] * edits
    assert row_counts(parameters, inputs, source_prompt="the cat").total == rows


def test_an_edit_without_a_seed_is_not_applicable(tiny: Checkpoint) -> None:
    editor, case = Editor(tiny), sdedit()
    inversion = case.invert(editor)
    assert inversion.trajectory.shape[1] == 1
    assert inversion.unet_rows == 0
    with pytest.raises(NotApplicableError, match=r"sdedit cannot make .* of source 2: no seed"):
        editor.edit(inversion, [[], ["a dog"], []])
    npi = fpe(inversion="negative_prompt").parameters
    without = editor.invert(photos(1, SQUARE), [""], npi)
    with pytest.raises(NotApplicableError, match="of source 1: no source prompt"):
        editor.edit(without, [["a dog"]])


def test_an_inversion_that_is_too_short_is_refused(tiny: Checkpoint) -> None:
    editor = Editor(tiny)
    inversion = sdedit().invert(editor)
    with pytest.raises(ParameterError, match="ddim needs 6 steps of the inversion, and it has 0"):
        editor.edit(inversion, TARGETS, ddim().parameters)


def test_an_editor_for_images_refuses_a_synthetic_source(tiny: Checkpoint) -> None:
    editor, case = Editor(tiny), sdedit()
    sources = editor.synthesise(["a cat"], [1], case.parameters)
    with pytest.raises(ParameterError, match=r"sdedit .* edits images"):
        editor.edit(sources, [["a dog"]], inputs=[[EditInputs(seed=1)]])


def test_one_inversion_serves_several_editors(tiny: Checkpoint) -> None:
    editor = Editor(tiny)
    inversion = fpe().invert(editor)
    for case in (ddim(), sdedit()):
        shared = editor.edit(inversion, case.targets, case.parameters, case.all_inputs)
        own = editor.edit(case.invert(editor), case.targets, inputs=case.all_inputs)
        assert torch.equal(shared.edits[1][1].latent, own.edits[1][1].latent)

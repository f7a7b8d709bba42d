"""DiffEdit and blended latent diffusion: masks that are found and masks that are given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fpe_core import (
    BlendedLatent,
    Checkpoint,
    DiffEdit,
    EditInputs,
    Editor,
    NotApplicableError,
    ParameterError,
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
    masks,
)


def seeds(**fields) -> list[list[EditInputs]]:
    return [
        [EditInputs(seed=10 * s + n, **fields) for n in range(len(each))]
        for s, each in enumerate(TARGETS)
    ]


def of_latent(mask: np.ndarray) -> torch.Tensor:
    """True where any of a position's 8 x 8 pixels is."""
    height, width = mask.shape
    made = torch.zeros(height // 8, width // 8, dtype=torch.bool)
    for y, x in zip(*np.nonzero(mask), strict=True):
        made[y // 8, x // 8] = True
    return made


def diffedit(size=SQUARE) -> Case:
    def expected(naive, z_0, s, n):
        return naive.diffedit(
            naive.invert(z_0, SOURCES[s]), SOURCES[s], TARGETS[s][n], seed=10 * s + n, samples=3
        )

    return Case(DiffEdit(mask_samples=3), expected, seeds(), size=size)


def given(size=SQUARE) -> Case:
    drawn = masks(size)

    def expected(naive, z_0, s, n):
        trajectory = naive.invert(z_0, SOURCES[s])
        mask = of_latent(drawn[s])
        return naive.diffedit(trajectory, SOURCES[s], TARGETS[s][n], seed=0, mask=mask)

    inputs = [[EditInputs(mask=drawn[s]) for _ in each] for s, each in enumerate(TARGETS)]
    return Case(DiffEdit(), expected, inputs, size=size)


def blended(size=SQUARE) -> Case:
    drawn = masks(size)

    def expected(naive, z_0, s, n):
        naive.mask = of_latent(drawn[s])
        return naive.blended(z_0, TARGETS[s][n], naive.mask, 10 * s + n)

    inputs = [
        [replace(each, mask=drawn[s]) for each in of_source] for s, of_source in enumerate(seeds())
    ]
    return Case(BlendedLatent(), expected, inputs, size=size)


EDITORS = {"diffedit": diffedit, "diffedit, mask given": given, "blended": blended}


@pytest.mark.parametrize("name", EDITORS)
def test_edits_equal_the_reference(checkpoint: Checkpoint, name: str) -> None:
    result = check_exact(checkpoint, EDITORS[name]())
    for edits in result.edits:
        for edit in edits:
            assert 0 < edit.mask.double().mean() < 1, "masks that bind"


@pytest.mark.parametrize("name", EDITORS)
def test_edits_of_another_shape_equal_the_reference(tiny_float64: Checkpoint, name: str) -> None:
    check_exact(tiny_float64, EDITORS[name](WIDE), max_rows=3, sources=[1])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("diffedit", "other_mask"),
        ("diffedit, mask given", "noisier"),
        ("blended", "noisier"),
        ("blended", "one_noise"),
    ],
)
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, name, wrong) -> None:
    check_wrong(tiny, EDITORS[name](), wrong, (1, 1))


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_is_the_same_in_any_batch(tiny: Checkpoint, name: str) -> None:
    """Of DiffEdit that is a defect elsewhere: its mask's limit was that of the whole batch."""
    check_batches(tiny, EDITORS[name]())


@pytest.mark.parametrize("edits", [1, 3])
@pytest.mark.parametrize(
    ("case", "formula", "total"),
    [
        (replace(diffedit(), method=DiffEdit()), {"K": 40, "D": 10}, "40 + 20*N + 1 + 79*N"),
        (given(), {"K": 40, "D": 0}, "40 + 1 + 79*N"),
        (blended(), {}, "100*N"),
    ],
    ids=["diffedit", "diffedit, mask given", "blended"],
)
def test_rows_are_those_of_the_formula(tiny: Checkpoint, case, formula, total, edits) -> None:
    check_rows(tiny, case, edits, formula)
    values = {"T": 50, "N": edits, **formula}
    assert eval(case.method.rows_formula, values) == eval(total, values)


@pytest.mark.parametrize("name", ["diffedit, mask given", "blended"])
def test_outside_the_mask_the_latent_is_the_source_s(tiny: Checkpoint, name: str) -> None:
    """Bit for bit; with an empty mask everything, with a full one nothing."""
    case = EDITORS[name]()
    editor = Editor(tiny)
    inversion = case.invert(editor, [0])
    z_0 = inversion.trajectory[0, 0]
    for mask in (masks(SQUARE)[0], np.zeros((64, 64), bool), np.ones((64, 64), bool)):
        inputs = [[EditInputs(seed=1, mask=mask)]]
        latent = editor.edit(inversion, [["the dog"]], inputs=inputs).edits[0][0].latent
        inside = of_latent(mask)
        assert torch.equal(latent[:, ~inside], z_0[:, ~inside])
        assert not (latent == z_0)[:, inside].all(dim=0).any()


def test_prompts_that_are_equal_differ_nowhere(tiny: Checkpoint) -> None:
    case = replace(diffedit(), targets=[[SOURCES[0]], [], []])
    editor = Editor(tiny)
    inversion = case.invert(editor)
    edit = editor.edit(inversion, case.targets, inputs=[[EditInputs(seed=1)], [], []]).edits[0][0]
    assert not edit.mask.any()
    assert torch.equal(edit.latent, inversion.trajectory[0, 0])


@pytest.mark.parametrize(
    ("inputs", "name", "message"),
    [
        (EditInputs(), "diffedit", "no seed"),
        (EditInputs(seed=1), "blended", "no mask"),
        (EditInputs(mask=np.ones((64, 64), bool)), "blended", "no seed"),
    ],
)
def test_what_is_missing_is_named(tiny: Checkpoint, inputs, name, message) -> None:
    editor, case = Editor(tiny), EDITORS[name]()
    with pytest.raises(NotApplicableError, match=message):
        editor.edit(case.invert(editor, [0]), [["a dog"]], inputs=[[inputs]])


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((60, 64), bool),
        np.ones((64, 64)),
        np.ones((64, 64, 1), bool),
        np.ones((0, 64), bool),
    ],
)
def test_a_mask_of_another_size_is_refused(tiny: Checkpoint, mask) -> None:
    editor, case = Editor(tiny), blended()
    inputs = [[EditInputs(seed=1, mask=mask)]]
    with pytest.raises(ParameterError, match="a mask must be bool and of the edit's size"):
        editor.edit(case.invert(editor, [0]), [["a dog"]], inputs=inputs)


def test_a_mask_needs_a_step_of_noise(tiny: Checkpoint) -> None:
    editor, case = Editor(tiny), replace(diffedit(), method=DiffEdit(mask_strength=0.1))
    with pytest.raises(
        NotApplicableError, match=r"mask_strength 0\.1 of 6 steps is less than one step"
    ):
        editor.edit(case.invert(editor, [0]), [["a dog"]], inputs=[[EditInputs(seed=1)]])

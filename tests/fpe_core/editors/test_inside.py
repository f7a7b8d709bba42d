"""Masks that bind, for every editor: the latents outside while sampling, and the pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fpe_core import (
    Checkpoint,
    EditInputs,
    Editor,
    Fit,
    Inside,
    NotApplicableError,
    ParameterError,
    fit_image,
    row_counts,
)
from fpe_core.image.bound import binds_nothing, composite, edited_area
from tests.fpe_core.editors.cases import (
    SQUARE,
    WIDE,
    Case,
    check_batches,
    check_exact,
    check_wrong,
    masks,
    photos,
)
from tests.fpe_core.editors.naive import counted_rows
from tests.fpe_core.editors.test_masked_editors import blended, given, of_latent
from tests.fpe_core.editors.test_p2p import blended as p2p_with_words
from tests.fpe_core.editors.test_p2p import p2p
from tests.fpe_core.editors.test_pnp_and_masactrl import masactrl, pnp
from tests.fpe_core.editors.test_simple_editors import ddim, fpe, sdedit


def bound(case: Case, inside: Inside | None = None) -> Case:
    """The case with masks that bind, one for each source."""
    drawn = masks(case.size)

    def expected(naive, z_0, s, n):
        mask = of_latent(drawn[s])
        naive.bound = mask, naive.invert(z_0, case.sources[s])
        made = case.expected(naive, z_0, s, n)
        naive.mask = mask if naive.mask is None else naive.mask & mask
        return made

    inputs = [
        [replace(each, mask=drawn[s]) for each in of_source]
        for s, of_source in enumerate(case.all_inputs)
    ]
    return replace(case, expected=expected, inputs=inputs, inside=inside or Inside())


EDITORS = {
    "fpe": fpe,
    "ddim": ddim,
    "sdedit": sdedit,
    "p2p": p2p,
    "p2p, words": lambda size=SQUARE: p2p_with_words(max(size, (128, 128))),
    "pnp": pnp,
    "masactrl": masactrl,
    "diffedit": given,
    "blended": blended,
}


@pytest.mark.parametrize("name", EDITORS)
def test_edits_equal_the_reference(checkpoint: Checkpoint, name: str) -> None:
    result = check_exact(checkpoint, bound(EDITORS[name]()))
    made = [edit.mask.double().mean() for edits in result.edits for edit in edits]
    assert max(made) > 0, "that of words may lie outside of the given one"
    assert all(mean < 1 for mean in made)


@pytest.mark.parametrize("name", EDITORS)
def test_edits_of_another_shape_equal_the_reference(tiny_float64: Checkpoint, name: str) -> None:
    check_exact(tiny_float64, bound(EDITORS[name](WIDE)), max_rows=3, sources=[1])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("fpe", "cleaner"),
        ("p2p", "only_at_the_end"),
        ("sdedit", "cleaner"),
        ("blended", "free_start"),
    ],
)
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, name, wrong) -> None:
    check_wrong(tiny, bound(EDITORS[name]()), wrong, (1, 1))


@pytest.mark.parametrize("name", ["fpe", "sdedit", "p2p"])
def test_an_edit_is_the_same_in_any_batch(tiny: Checkpoint, name: str) -> None:
    check_batches(tiny, bound(EDITORS[name]()))


@pytest.mark.parametrize("name", EDITORS)
def test_pixels_outside_are_the_source_s(tiny: Checkpoint, name: str) -> None:
    """Bit for bit; inside, the picture is another one."""
    case = bound(EDITORS[name]())
    editor = Editor(tiny)
    inversion = case.invert(editor)
    result = editor.edit(inversion, case.targets, inputs=case.all_inputs)
    for source, of_source, inputs in zip(
        inversion.images, result.edits, case.all_inputs, strict=True
    ):
        for edit, given_to_it in zip(of_source, inputs, strict=True):
            same = (np.asarray(edit.image) == np.asarray(source)).all(axis=-1)
            assert same[~given_to_it.mask].all()
            assert name == "p2p, words" or same[given_to_it.mask].mean() < 0.5


@pytest.mark.parametrize(
    ("case", "more"), [(fpe(), 0), (ddim(), 0), (pnp(), 0), (sdedit(), 4), (blended(), 6)]
)
def test_a_mask_that_binds_costs_the_inversion_where_there_is_none(
    tiny: Checkpoint, case, more
) -> None:
    """Four of six steps of the inversion for SDEdit at 0.8, all of them for blended latents."""
    with_mask = bound(case)
    editor, given_to_it = Editor(tiny), with_mask.all_inputs[0][0]
    with counted_rows(tiny) as calls:
        inversion = with_mask.invert(editor, [0])
        editor.edit(inversion, [with_mask.targets[0]], inputs=[[given_to_it]])
    prompt = with_mask.sources[0]
    counts = row_counts(with_mask.parameters, [given_to_it], source_prompt=prompt)
    free = row_counts(case.parameters, [given_to_it], source_prompt=prompt)
    assert sum(calls) == counts.total == free.total + more


def test_one_mask_and_no_mask_among_several_edits(tiny: Checkpoint) -> None:
    editor = Editor(tiny)
    case = bound(fpe())
    inversion = case.invert(editor, [0])
    inputs = [[case.all_inputs[0][0], EditInputs()]]
    with pytest.raises(NotApplicableError, match="no mask, inside of which it is edited"):
        editor.edit(inversion, [["a dog", "a cat"]], inputs=inputs)


@pytest.mark.parametrize(
    ("inside", "drawn", "reason"),
    [
        (Inside(), np.zeros((64, 64), bool), "leaves nothing"),
        (Inside(invert=True), np.ones((64, 64), bool), "leaves nothing"),
        (Inside(), np.ones((64, 64), bool), "covers all"),
        (Inside(padding_px=63), np.eye(64, dtype=bool), "covers all"),
        (Inside(padding_px=63, invert=True), np.eye(64, dtype=bool), "leaves nothing"),
    ],
)
def test_a_mask_that_binds_nothing_is_not_applicable(
    tiny: Checkpoint, inside, drawn, reason
) -> None:
    editor, case = Editor(tiny), replace(fpe(), inside=inside)
    with pytest.raises(NotApplicableError, match=reason):
        editor.edit(case.invert(editor, [0]), [["a dog"]], inputs=[[EditInputs(mask=drawn)]])


@pytest.mark.parametrize(
    "mask", [np.ones((8, 8), bool), np.ones((64, 64)), np.ones((65, 64), bool)]
)
def test_a_mask_of_another_size_is_refused(tiny: Checkpoint, mask) -> None:
    editor, case = Editor(tiny), replace(fpe(), inside=Inside())
    with pytest.raises(ParameterError, match="a mask must be bool and of the edit's size"):
        editor.edit(case.invert(editor, [0]), [["a dog"]], inputs=[[EditInputs(mask=mask)]])


def test_a_synthetic_source_has_nothing_to_be_bound_to(tiny: Checkpoint) -> None:
    editor, case = Editor(tiny), replace(fpe(), inside=Inside())
    sources = editor.synthesise(["a cat"], [1], case.parameters)
    inputs = [[EditInputs(mask=masks(SQUARE)[0])]]
    with pytest.raises(ParameterError, match="masks that bind"):
        editor.edit(sources, [["a dog"]], inputs=inputs)
    reason = case.parameters.not_applicable("a cat", "a dog", inputs[0][0], synthetic=True)
    assert reason == "fpe with a mask that binds edits images, not a synthetic one"


WHOLE = Fit("crop", 8, 6, 1.0, 1.0, 0.0, 0.0)


def drawn(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def test_the_mask_is_grown_to_all_sides_and_then_inverted() -> None:
    dot = drawn("........", "........", "...#....", "........", "........", "........")
    grown = drawn("........", "..###...", "..###...", "..###...", "........", "........")
    assert np.array_equal(edited_area(dot, WHOLE, Inside(padding_px=1)), grown)
    inverted = edited_area(dot, WHOLE, Inside(padding_px=1, invert=True))
    assert np.array_equal(inverted, ~grown)


def test_what_padding_added_around_the_source_is_never_edited() -> None:
    fit = fit_image(Image.new("RGB", (40, 20)), 16, 16, "pad").fit
    around = edited_area(np.zeros((16, 16), bool), fit, Inside(invert=True))
    assert around[4:12].all()
    assert not around[:4].any()
    assert not around[12:].any()
    assert "covers all" in binds_nothing(around, fit), "of the source there is nothing else"
    around[5, 5] = False
    assert binds_nothing(around, fit) == ""


def test_the_rim_fades_inside_of_the_mask() -> None:
    """Distances 1, 2, 3 of a rim of 3 pixels have a quarter, a half, three quarters of the edit."""
    mask = np.zeros((20, 20), bool)
    mask[:, 5:] = True
    old, new = Image.new("RGB", (20, 20), (0, 200, 100)), Image.new("RGB", (20, 20), (100, 0, 100))
    row = np.asarray(composite(new, old, mask, 3))[10]
    assert row[4].tolist() == [0, 200, 100]
    assert row[5].tolist() == [25, 150, 100]
    assert row[6].tolist() == [50, 100, 100]
    assert row[7].tolist() == [75, 50, 100]
    assert row[8].tolist() == row[19].tolist() == [100, 0, 100]
    hard = np.asarray(composite(new, old, mask))[10]
    assert hard[4].tolist() == [0, 200, 100]
    assert hard[5].tolist() == [100, 0, 100]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feather_px": -1}, "feather_px"),
        ({"feather_px": 1.5}, "feather_px"),
        ({"padding_px": 2000}, "padding_px"),
        ({"invert": 1}, "invert must be true or false"),
        ({"feather": 2}, "unknown feather; allowed: feather_px, padding_px, invert"),
    ],
)
def test_what_is_out_of_range_is_refused(values, message) -> None:
    with pytest.raises(ParameterError, match=message):
        Inside.from_dict(values)


def test_parameters_read_back_and_are_in_ids_only_if_masks_bind() -> None:
    plain = fpe().parameters
    assert "inside" not in plain.to_dict()
    parameters = replace(plain, inside=Inside(feather_px=3, invert=True))
    assert type(plain).from_dict(parameters.to_dict()) == parameters
    assert parameters.to_dict()["inside"] == {"feather_px": 3, "padding_px": 0, "invert": True}
    assert not parameters.can_make_any


def test_masks_are_those_of_photographs_that_were_fitted(tiny: Checkpoint) -> None:
    """A wide source, padded: the bars stay as they are with an inverted mask."""
    editor, case = Editor(tiny), replace(ddim(), inside=Inside(invert=True))
    source = photos(1, (128, 64))[0]
    inversion = editor.invert([source], ["a cat"], case.parameters, fit="pad")
    mask = np.zeros((64, 64), bool)
    mask[28:36, 20:30] = True
    edit = editor.edit(inversion, [["a dog"]], inputs=[[EditInputs(mask=mask)]]).edits[0][0]
    same = (np.asarray(edit.image) == np.asarray(inversion.images[0])).all(axis=-1)
    assert same[:16].all()
    assert same[48:].all()
    assert same[mask].all()
    assert same[16:48][~mask[16:48]].mean() < 0.5

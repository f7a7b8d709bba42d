"""Plug-and-Play and MasaCtrl against maps that are written out."""

from __future__ import annotations

import pytest

from fpe_core import Checkpoint, Editor, MasaCtrl, ParameterError, PlugAndPlay
from fpe_core.layer_rules import LayersByPart, LayersByRange
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
)


def pnp(size=SQUARE, **changes) -> Case:
    def expected(naive, z_0, s, n):
        trajectory = naive.invert(z_0, SOURCES[s])
        return naive.pnp(trajectory, TARGETS[s][n], attention=3, residual=4)

    return Case(PlugAndPlay(**changes), expected, size=size, negative="green snow")


def masactrl(size=SQUARE, sources=tuple(SOURCES), keys="replaced", **changes) -> Case:
    def expected(naive, z_0, s, n):
        trajectory = naive.invert(z_0, sources[s])
        return naive.masactrl(
            trajectory, sources[s], TARGETS[s][n], start=1, union=keys == "appended"
        )

    method = MasaCtrl(keys=keys, steps=(0.2, 1.0), **changes)
    return Case(method, expected, size=size, sources=sources)


EDITORS = {
    "pnp": pnp,
    "masactrl": masactrl,
    "masactrl, no source prompts": lambda size=SQUARE: masactrl(size, ("", "the dog", "")),
    "masactrl, union": lambda size=SQUARE: masactrl(size, keys="appended"),
}


@pytest.mark.parametrize("name", EDITORS)
def test_edits_equal_the_reference(checkpoint: Checkpoint, name: str) -> None:
    check_exact(checkpoint, EDITORS[name]())


@pytest.mark.parametrize("name", ["pnp", "masactrl", "masactrl, union"])
def test_edits_of_another_shape_equal_the_reference(tiny_float64: Checkpoint, name: str) -> None:
    check_exact(tiny_float64, EDITORS[name](WIDE), max_rows=3, sources=[1])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("pnp", "no_residual"),
        ("pnp", "layers"),
        ("pnp", "conditional_only"),
        ("pnp", "source_prompt"),
        ("pnp", "one_step_off"),
        ("masactrl", "queries"),
        ("masactrl", "conditional_gives_all"),
        ("masactrl", "one_step_off"),
        ("masactrl, union", "one_step_off"),
    ],
)
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, name, wrong) -> None:
    check_wrong(tiny, EDITORS[name](), wrong, (1, 1))


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_is_the_same_in_any_batch(tiny: Checkpoint, name: str) -> None:
    check_batches(tiny, EDITORS[name]())


@pytest.mark.parametrize("edits", [1, 3])
@pytest.mark.parametrize(
    ("case", "formula", "total"),
    [
        (pnp(), {"F": 40}, "91 + 99*N"),
        (Case(MasaCtrl(), pnp().expected, sources=[""]), {"M": 46}, "97 + 99*N"),
        (Case(MasaCtrl(), pnp().expected), {"M": 92}, "143 + 99*N"),
        (Case(MasaCtrl("appended"), pnp().expected, sources=[""]), {"M": 46}, "97 + 99*N"),
    ],
    ids=["pnp", "masactrl, no source prompt", "masactrl", "masactrl, union"],
)
def test_rows_are_those_of_the_formula(tiny: Checkpoint, case, formula, total, edits) -> None:
    check_rows(tiny, case, edits, formula)
    values = {"T": 50, "N": edits, **formula}
    assert eval(case.method.rows_formula, values) == eval(total, values)


def test_nothing_is_left_on_the_modules(tiny: Checkpoint) -> None:
    own = dict(tiny.unet.attn_processors)
    for case in (pnp(), masactrl()):
        case.make(tiny, [(1, [0, 1])])
    assert dict(tiny.unet.attn_processors) == own
    assert not any(module._forward_hooks for module in tiny.unet.modules())


def test_layers_that_are_not_there_are_refused(tiny: Checkpoint) -> None:
    case = masactrl()
    for layers, message in (
        (LayersByPart("up", first=10), r"up 10-: this checkpoint has 9 in that part \(up\)"),
        (LayersByRange(11, 17), "at most 16"),
    ):
        parameters = case.parameters.edited_by(MasaCtrl(layers=layers))
        editor = Editor(tiny)
        with pytest.raises(ParameterError, match=message):
            editor.edit(case.invert(editor), TARGETS, parameters)

"""Methods as values: names, defaults, JSON, what they need, how many rows they take."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch

from fpe_core import (
    Checkpoint,
    EditInputs,
    EditMethod,
    Editor,
    EditParameters,
    EditRule,
    FreePromptEditing,
    Injection,
    LayersByLevel,
    ParameterError,
    method_from_dict,
    method_named,
    method_names,
    row_counts,
)
from fpe_core.editors import method as methods
from fpe_core.injection import steps_between
from fpe_core.layer_rules import LayersByPart, layer_rule_from_dict, layer_rule_from_text
from tests.fpe_core.editors.cases import SQUARE, photos

EVERY = (
    "blended",
    "ddim",
    "diffedit",
    "fpe",
    "instruct_pix2pix",
    "masactrl",
    "p2p",
    "pix2pix_zero",
    "pnp",
    "sdedit",
    "shape_guided",
)


def test_every_file_is_found() -> None:
    assert method_names() == EVERY


@pytest.mark.parametrize("name", EVERY)
def test_a_record_reads_back_as_the_same_method(name: str) -> None:
    method = method_named(name)()
    assert method_from_dict(json.loads(json.dumps(method.to_dict()))) == method
    parameters = EditParameters().edited_by(method)
    assert parameters.method == method
    written = json.loads(json.dumps(parameters.to_dict()))
    assert EditParameters.from_dict(written) == parameters
    assert hash(parameters) == hash(EditParameters.from_dict(written))


@pytest.mark.parametrize("name", EVERY)
def test_it_says_where_it_is_from_and_what_each_parameter_is(name: str) -> None:
    method = method_named(name)
    assert re.search(r"arXiv \d{4}\.\d{5}", method.paper)
    for each in dataclasses.fields(method):
        assert re.search(rf"\b{each.name}\b", method.__doc__ or ""), each.name
    EditParameters(**method.published)


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_is_in_the_id(name: str) -> None:
    """Two methods that differ in one parameter have different records."""
    other = {
        "steps": (0.1, 0.9),
        "keys": "appended",
        "controller": "replace",
        "sampler": "euler_ancestral",
        "source_sentences": ("a cat", "my cat"),
        "target_sentences": ("a dog", "my dog"),
    }
    both = {"source_sentences": ("a cat",), "target_sentences": ("a dog",)}
    base = method_named(name)(**both if name == "pix2pix_zero" else {})
    for each in dataclasses.fields(base):
        value = getattr(base, each.name)
        if hasattr(value, "to_dict"):
            changed: object = LayersByPart("down")
        elif isinstance(value, bool):
            changed = not value
        elif isinstance(value, int | float):
            changed = value * 2 if isinstance(value, int) or value > 1 else value / 2
        else:
            changed = other[each.name]
        method = dataclasses.replace(base, **{each.name: changed})
        assert method.to_dict() != base.to_dict(), each.name


def test_fpe_is_in_the_record_as_it_always_was() -> None:
    fpe = FreePromptEditing(LayersByLevel(2), 0.5)
    parameters = EditParameters(guidance_scale=3.0).edited_by(fpe)
    assert parameters == EditParameters(
        guidance_scale=3.0, layers=LayersByLevel(2), replaced_fraction=0.5
    )
    assert "editor" not in parameters.to_dict()
    there_and_back = parameters.edited_by(method_named("pnp")()).edited_by(fpe)
    assert there_and_back == parameters


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"level": 2}, "level>=2"),
        ({"max_tokens": 1024}, "tokens<=1024"),
        ({"first": 4, "last": 14}, "4-14"),
        ({"part": "up", "first": 2}, "up 2-"),
        ({"part": "down", "first": 1, "last": 3}, "down 1-3"),
    ],
)
def test_layer_rules_read_back(rule, text) -> None:
    made = layer_rule_from_dict(rule)
    assert made.to_dict() == rule
    assert str(made) == text
    assert layer_rule_from_text(text) == made


@pytest.mark.parametrize(
    ("shares", "steps", "numbers"),
    [
        ((0.0, 0.8), 50, range(40)),
        ((0.08, 1.0), 50, range(4, 50)),
        ((0.3, 0.7), 10, range(3, 7)),
        ((0.5, 0.5), 10, range(5, 5)),
    ],
)
def test_shares_are_steps_from_the_noisy_end(shares, steps, numbers) -> None:
    assert steps_between(shares, steps) == numbers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention": "both"}, "attention must be self or cross"),
        ({"takes": "kq"}, "takes must be one of"),
        ({"appends": True}, "only kv can be appended"),
        ({"mixes_words": True}, "only qk of cross-attention"),
        ({"steps": (0.5, 0.1)}, "steps must not end before they start"),
        ({"steps": (0.0, 1.1)}, "steps must be 0 to 1"),
        ({"conditional": "target"}, "a source's row must be one of"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(values, message) -> None:
    good = {"attention": "self", "layers": LayersByLevel(2), "takes": "qk", "steps": (0.0, 1.0)}
    with pytest.raises(ParameterError, match=message):
        Injection(**{**good, **values})


def test_inputs_are_what_they_hold() -> None:
    """For ids: a mask is its digest and shape."""
    mask = np.zeros((8, 8), bool)
    other = mask.copy()
    other[0, 0] = True
    one, same, moved, wide = (
        EditInputs(seed=1, mask=m, blend_words=("a", "b"), word_scales=(("b", 2),)).to_dict()
        for m in (mask, mask.copy(), other, np.zeros((4, 16), bool))
    )
    assert one == same
    assert json.dumps(one) != json.dumps(moved)
    assert json.dumps(one) != json.dumps(wide)
    assert EditInputs().to_dict() == {}


@dataclass(frozen=True)
class Values(EditMethod):
    """A method of this test: values of cross-attention in the middle, and all of it going up."""

    name: ClassVar[str] = "values"
    paper: ClassVar[str] = "none"
    rows_formula: ClassVar[str] = "T + R + 1 + (2*T - 1)*N"

    @property
    def rule(self) -> EditRule:
        return EditRule(
            (
                Injection("cross", LayersByPart("middle"), "v", (0.2, 0.9)),
                Injection("self", LayersByPart("up"), "qkv", (0.0, 0.5)),
            )
        )


def test_a_method_that_the_rule_expresses_is_one_file(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by its name, runs, and its rows are counted."""
    module = ModuleType("fpe_core.editors.values")
    module.Values = Values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = [*methods.pkgutil.iter_modules(methods.editors.__path__)]
    found.append(found[0]._replace(name="values"))
    monkeypatch.setattr(methods.pkgutil, "iter_modules", lambda _path: found)
    methods._methods.cache_clear()
    try:
        assert "values" in method_names()
        parameters = EditParameters(steps=10, width_px=64, height_px=64).edited_by(
            method_from_dict({"name": "values"})
        )
        assert EditParameters.from_dict(parameters.to_dict()) == parameters
        editor = Editor(tiny)
        inversion = editor.invert(photos(1, SQUARE), ["the cat"], parameters)
        result = editor.edit(inversion, [["the dog", "a red cat"]])
        counts = row_counts(parameters, [EditInputs()] * 2, source_prompt="the cat")
        assert inversion.unet_rows + result.unet_rows == counts.total == 10 + 9 + 1 + 19 * 2
        plain = editor.edit(inversion, [["the dog"]], parameters.edited_by(method_named("ddim")()))
        assert not torch.allclose(plain.edits[0][0].latent, result.edits[0][0].latent)
    finally:
        methods._methods.cache_clear()


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys; from fpe_core import EditInputs, EditParameters, method_named, row_counts; "
        "p = EditParameters().edited_by(method_named('p2p')()); "
        "print(row_counts(p, [EditInputs()], source_prompt='a cat').total, "
        "*(m for m in ('torch', 'diffusers') if m in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["180"]

"""Proximal guidance: what of the differences guides, and where latents are pulled to the source."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fpe_core import (
    Checkpoint,
    DdimEditing,
    Editor,
    EditParameters,
    FreePromptEditing,
    InstructPix2Pix,
    LayersByLevel,
    ParameterError,
    Proximal,
    SdEdit,
)
from fpe_core.agreement import latent_distance
from fpe_core.near_source import NearSource
from fpe_core.proximal import PULLED_BELOW
from tests.fpe_core.editors.cases import (
    SOURCES,
    SQUARE,
    STEPS,
    TARGETS,
    WIDE,
    Case,
    check_batches,
    check_exact,
    check_wrong,
    photos,
)


def case(
    norm="l0", quantile=0.7, pull=0.0, size=SQUARE, inversion="negative_prompt", replaced=0.8
) -> Case:
    def expected(naive, z_0, s, n):
        trajectory = naive.invert(z_0, SOURCES[s])
        if naive.wrong != "all_of_it":
            naive.near = ("l1" if naive.wrong == "other_norm" else norm, quantile, pull), trajectory
        negative = SOURCES[s] if inversion == "negative_prompt" else None
        steps = int(STEPS * replaced)
        return naive.fpe(trajectory, SOURCES[s], TARGETS[s][n], steps, negative=negative)

    return Case(
        FreePromptEditing(layers=LayersByLevel(2), replaced_fraction=replaced),
        expected,
        size=size,
        inversion=inversion,
        others={"proximal": Proximal(norm, quantile, pull)},
    )


CASES = {
    "l0": case,
    "l1": lambda size=SQUARE: case("l1", 0.6, size=size),
    "pull": lambda size=SQUARE: case("l0", 0.95, 0.7, size=size),
    "direct": lambda size=SQUARE: case("l1", 0.9, 1.0, size=size, inversion="direct"),
}


@pytest.mark.parametrize("name", CASES)
def test_edits_equal_the_reference(checkpoint: Checkpoint, name: str) -> None:
    """In float32 a value beside the threshold may be on its other side: 4e-4 was seen on one
    processor, and the mistakes below are off by 2e-2."""
    tolerance = 2e-3 if checkpoint.dtype == torch.float32 else None
    check_exact(checkpoint, CASES[name](), tolerance=tolerance)


@pytest.mark.parametrize("name", ["l1", "pull"])
def test_edits_of_another_shape_equal_the_reference(tiny_float64: Checkpoint, name: str) -> None:
    check_exact(tiny_float64, CASES[name](size=WIDE), max_rows=3, sources=[1])


@pytest.mark.parametrize(
    ("made", "wrong"),
    [
        (case(), "all_of_it"),
        (case(), "other_norm"),
        (case(quantile=0.999, pull=0.7, size=WIDE), "pulled_from_the_start"),
        (case(quantile=0.999, pull=0.7, size=WIDE), "not_grown"),
    ],
)
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, made, wrong) -> None:
    check_wrong(tiny, made, wrong, (1, 1))


@pytest.mark.parametrize("made", [case(), case("l1", 0.9, 0.5)])
def test_an_edit_is_the_same_in_any_batch(checkpoint: Checkpoint, made: Case) -> None:
    check_batches(checkpoint, made)


def test_what_is_kept_of_a_difference() -> None:
    """By its own quantile, edit by edit: the operators of the two norms."""
    difference = torch.stack([torch.arange(-8.0, 8.0), torch.arange(-80.0, 80.0, 10.0)])
    difference = difference.reshape(2, 1, 4, 4)
    keep_hard, keep_soft = (NearSource(Proximal(norm, 0.5)).shrink for norm in ("l0", "l1"))
    assert keep_hard is not None
    assert keep_soft is not None
    hard, soft = keep_hard(difference), keep_soft(difference)
    limit = float(difference[0].abs().quantile(0.5))
    assert hard[0].flatten().tolist() == [-8, -7, -6, -5, *[0] * 8, *[4 * (limit < 4)], 5, 6, 7]
    assert torch.equal(soft[0], torch.nn.functional.softshrink(difference[0], limit))
    for made in (hard, soft):
        assert torch.allclose(made[1], 10 * made[0])


def test_the_pull_goes_to_the_source() -> None:
    """All the way where nothing was kept nearby, and only at late steps after a guided one."""
    difference, z, source = torch.zeros(1, 2, 5, 5), torch.ones(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)
    difference[0, 1, 0, 0] = 3.0
    near = NearSource(Proximal("l0", 0.5, pull=1.0), lambda k, _sampled: source + k)
    shrink = near.shrink
    assert shrink is not None
    shrink(difference)
    assert torch.equal(near.pull(z, 5, PULLED_BELOW, z), z)
    shrink(difference)
    pulled = near.pull(z, 3, PULLED_BELOW - 1, z)
    assert pulled[0].sum(dim=0).tolist()[:3] == [[2, 2, 6, 6, 6], [2, 2, 6, 6, 6], [6] * 5]
    assert torch.equal(near.pull(z, 0, 1, z), z)  # no guided step came before
    assert NearSource(None).shrink is None


def test_it_changes_the_edits_of_every_editor_that_is_guided(tiny: Checkpoint) -> None:
    editor = Editor(tiny)
    parameters = EditParameters(steps=STEPS, width_px=64, height_px=64).edited_by(DdimEditing())
    inversion = editor.invert(photos(1, SQUARE), [SOURCES[0]], parameters)
    near = replace(parameters, proximal=Proximal())
    made = editor.edit(inversion, [["a car"]], near).edits[0][0].latent
    assert latent_distance(made, editor.edit(inversion, [["a car"]]).edits[0][0].latent) > 1e-3
    unguided = [
        editor.edit(inversion, [["a car"]], replace(each, guidance_scale=1.0)).edits[0][0].latent
        for each in (near, parameters)
    ]
    assert torch.equal(*unguided)
    synthetic = editor.synthesise(["a cat"], [3], near)
    assert editor.edit(synthetic, [["a dog"]]).edits[0][0].is_finite


def test_it_is_in_the_record_only_where_it_is_used() -> None:
    parameters = EditParameters(proximal=Proximal("l1", 0.5, 0.1))
    assert EditParameters.from_dict(parameters.to_dict()) == parameters
    assert "proximal" not in EditParameters().to_dict()
    assert parameters.edited_by(SdEdit()).proximal == parameters.proximal


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": "l2"}, "norm must be one of l0, l1"),
        ({"quantile": 1.5}, "quantile must be 0 to 1"),
        ({"pull": -0.1}, "pull must be 0 to 1"),
        ({"strength": 1}, "unknown parameter of proximal guidance: strength; allowed: norm"),
    ],
)
def test_what_is_out_of_range_is_refused(values, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Proximal.from_dict(values)


def test_guidance_by_an_image_has_no_such_difference() -> None:
    with pytest.raises(ParameterError, match="proximal guidance is not for it"):
        EditParameters(proximal=Proximal()).edited_by(InstructPix2Pix())

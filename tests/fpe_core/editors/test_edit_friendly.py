"""Edit-friendly inversion: latents with independent noise, its noise maps, and edits with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fpe_core import (
    BlendedLatent,
    Checkpoint,
    DdimEditing,
    DiffEdit,
    Editor,
    EditParameters,
    FreePromptEditing,
    Inside,
    LayersByLevel,
    MasaCtrl,
    ParameterError,
    PlugAndPlay,
    row_counts,
)
from fpe_core.agreement import LATENT_TOLERANCE, latent_distance
from fpe_core.editors.method import NOTHING
from fpe_core.inversion import seed_of
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
from tests.fpe_core.editors.naive import counted_rows

LEVELS = 4  # of 6 steps: 0.36 of them is 2.16, and floor(0.64 * 6) is 3; 0.3 leaves 4
OTHERS = {"skipped_fraction": 0.3}


def inverted(naive, z_0, s, size, scale=3.5):
    seed = seed_of(photos(3, size)[s])
    return naive.edit_friendly(z_0, SOURCES[s], seed=seed, guidance=scale, levels=LEVELS)


def ddim(size=SQUARE, negative="", **others) -> Case:
    def expected(naive, z_0, s, n):
        scale = others.get("source_guidance_scale", 3.5)
        return naive.ddim(inverted(naive, z_0, s, size, scale), TARGETS[s][n])

    return Case(
        DdimEditing(),
        expected,
        size=size,
        negative=negative,
        inversion="edit_friendly",
        others={**OTHERS, **others},
    )


def fpe(size=SQUARE) -> Case:
    def expected(naive, z_0, s, n):
        return naive.fpe(inverted(naive, z_0, s, size), SOURCES[s], TARGETS[s][n], 4)

    method = FreePromptEditing(layers=LayersByLevel(2))
    return Case(method, expected, size=size, inversion="edit_friendly", others=OTHERS)


EDITORS = {
    "ddim": ddim,
    "fpe": fpe,
    "ddim, unguided source": lambda size=SQUARE: ddim(size, source_guidance_scale=1.0),
    "ddim, negative prompt": lambda size=SQUARE: ddim(size, "a car"),
}


@pytest.mark.parametrize("name", EDITORS)
def test_edits_equal_the_reference(checkpoint: Checkpoint, name: str) -> None:
    check_exact(checkpoint, EDITORS[name]())


@pytest.mark.parametrize("name", ["ddim", "fpe"])
def test_edits_of_another_shape_equal_the_reference(tiny_float64: Checkpoint, name: str) -> None:
    check_exact(tiny_float64, EDITORS[name](WIDE), max_rows=3, sources=[1])


@pytest.mark.parametrize("wrong", ["other_noise", "one_noise", "noise_at_the_end", "one_step_off"])
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, wrong: str) -> None:
    check_wrong(tiny, fpe(), wrong, (1, 1))


@pytest.mark.parametrize("case", [ddim(), fpe()])
def test_an_edit_is_the_same_in_any_batch(checkpoint: Checkpoint, case: Case) -> None:
    check_batches(checkpoint, case)


def test_its_own_prompt_gives_the_source_back(tiny_float64: Checkpoint) -> None:
    """With the same guidance, from any level; the last step has no map, so z_0 is what the UNet
    sees in z_1. Another prompt gives something else."""
    editor, case = Editor(tiny_float64), ddim()
    parameters = replace(case.parameters, guidance_scale=3.5, skipped_fraction=0.0)
    inversion = editor.invert(photos(2, SQUARE), SOURCES[:2], parameters)
    assert inversion.noise_maps.shape == (2, STEPS, *inversion.trajectory.shape[2:])
    for skipped in (0.0, 0.5):
        own = replace(parameters, skipped_fraction=skipped)
        made = editor.edit(inversion.select([0, 1]), [[SOURCES[0], "a car"], [SOURCES[1]]], own)
        maps = replace(inversion, trajectory=inversion.trajectory[:, :2])
        last = editor.edit(maps, [[SOURCES[0]], [SOURCES[1]]], _only_the_last_step(own))
        for s in (0, 1):
            assert latent_distance(made.edits[s][0].latent, last.edits[s][0].latent) < 1e-10
        assert latent_distance(made.edits[0][1].latent, made.edits[0][0].latent) > 1e-3


def _only_the_last_step(parameters: EditParameters) -> EditParameters:
    return replace(parameters, skipped_fraction=1.0 - 1.0 / parameters.steps)


def test_the_noise_of_a_source_is_of_its_pixels(tiny: Checkpoint) -> None:
    """Not of its place, its prompt, or how many steps are left out; another image has other."""
    editor, parameters, pictures = Editor(tiny), ddim().parameters, photos(2, SQUARE)
    one = editor.invert(pictures[1:], [SOURCES[0]], parameters)
    more = replace(parameters, skipped_fraction=0.0)
    two = editor.invert([pictures[0], pictures[1]], [SOURCES[1], SOURCES[2]], more)
    shared = two.trajectory[1, : LEVELS + 1]
    assert latent_distance(one.trajectory[0], shared) <= LATENT_TOLERANCE[tiny.dtype]
    assert latent_distance(two.trajectory[0], two.trajectory[1]) > 1e-2
    apart = [(two.trajectory[1, k] - two.trajectory[1, 0]).flatten() for k in (1, 2)]
    assert abs(float(torch.corrcoef(torch.stack(apart))[0, 1])) < 0.9


@pytest.mark.parametrize(
    ("source", "changes", "rows"),
    [
        ("a cat", {}, 2 * 31 + 1 + 2 * 32 * 2 - 2),
        ("", {}, 31 + 1 + 2 * 32 * 2 - 2),
        ("a cat", {"source_guidance_scale": 1.0}, 31 + 1 + 2 * 32 * 2 - 2),
        ("a cat", {"skipped_fraction": 0.5, "guidance_scale": 1.0}, 2 * 24 + 25 * 2),
    ],
)
def test_rows_are_counted(tiny: Checkpoint, source: str, changes, rows: int) -> None:
    """Two rows a level for the maps, one without a prompt or without guidance; none for the last.
    The edits leave out the same steps."""
    editor = Editor(tiny)
    parameters = replace(ddim().parameters, steps=50, skipped_fraction=0.36)
    parameters = replace(parameters, **changes)
    with counted_rows(tiny) as calls:
        inversion = editor.invert(photos(1, SQUARE), [source], parameters)
        result = editor.edit(inversion, [["a dog", "a car"]])
    counts = row_counts(parameters, [NOTHING] * 2, source_prompt=source)
    assert sum(calls) == counts.total == rows == inversion.unet_rows + result.unet_rows
    assert inversion.unet_rows == counts.inversion


def test_sources_with_and_without_a_prompt_go_together(tiny: Checkpoint) -> None:
    editor, parameters = Editor(tiny), ddim().parameters
    both = editor.invert(photos(2, SQUARE), ["", SOURCES[1]], parameters)
    for s, prompt in enumerate(["", SOURCES[1]]):
        alone = editor.invert([photos(2, SQUARE)[s]], [prompt], parameters)
        off = latent_distance(both.noise_maps[s], alone.noise_maps[0])
        assert off <= LATENT_TOLERANCE[tiny.dtype]
    assert both.unet_rows == 3 * (LEVELS - 1)


def test_masks_that_bind_are_put_back_to_its_latents(tiny: Checkpoint) -> None:
    case = ddim()
    parameters = replace(case.parameters, inside=Inside())
    editor = Editor(tiny)
    inversion = editor.invert(photos(1, SQUARE), [SOURCES[0]], parameters)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:32] = True
    inputs = replace(case.all_inputs[0][0], mask=mask.numpy())
    made = editor.edit(inversion, [["a car"]], inputs=[[inputs]]).edits[0][0]
    assert torch.equal(made.latent[:, 4:], inversion.trajectory[0, 0, :, 4:].cpu())


@pytest.mark.parametrize("method", [PlugAndPlay(), MasaCtrl(steps=(0.4, 1.0))])
def test_other_editors_take_from_its_latents(tiny: Checkpoint, method) -> None:
    """What they take of the source is at the inversion's latents, so it changes the edit."""
    editor, parameters = Editor(tiny), ddim().parameters.edited_by(method)
    inversion = editor.invert(photos(1, SQUARE), [SOURCES[0]], parameters)
    made = editor.edit(inversion, [["a car"]]).edits[0][0]
    plain = editor.edit(inversion, [["a car"]], ddim().parameters).edits[0][0]
    assert latent_distance(made.latent, plain.latent) > 1e-3


def test_a_retry_that_keeps_more_leaves_out_more_steps() -> None:
    parameters = EditParameters(inversion="edit_friendly").edited_by(DdimEditing())
    assert parameters.keeping(0.1).skipped_fraction == pytest.approx(0.46)
    assert parameters.keeping(0.9).inverted_steps == 1
    assert parameters.keeping(-0.1) == parameters


def test_what_does_not_fit_is_said(tiny: Checkpoint) -> None:
    editor, parameters = Editor(tiny), ddim().parameters
    inversion = editor.invert(photos(1, SQUARE), ["a cat"], parameters)
    direct = EditParameters(steps=STEPS, width_px=64, height_px=64).edited_by(DdimEditing())
    with pytest.raises(ParameterError, match="inversion must be the sources' own"):
        editor.edit(inversion, [["a dog"]], direct)
    with pytest.raises(ParameterError, match="inversion must be the sources' own"):
        editor.edit(editor.invert(photos(1, SQUARE), ["a cat"], direct), [["a dog"]], parameters)
    with pytest.raises(ParameterError, match="needs 6 steps of the inversion, and it has 4"):
        editor.edit(inversion, [["a dog"]], replace(parameters, skipped_fraction=0.0))
    with pytest.raises(ParameterError, match="are parameters of inversion edit_friendly"):
        EditParameters(skipped_fraction=0.2)
    with pytest.raises(ParameterError, match="leaves none of 6 steps"):
        replace(parameters, skipped_fraction=0.9)
    for method in (DiffEdit(), BlendedLatent()):
        with pytest.raises(ParameterError, match="does not start at the inversion of all steps"):
            parameters.edited_by(method)
    with pytest.raises(ParameterError, match="inversion edit_friendly edits images"):
        editor.edit(editor.synthesise(["a cat"], [1], parameters), [["a dog"]])


def test_maps_that_are_not_finite_have_diverged(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = tiny.unet.conv_out.forward
    monkeypatch.setattr(tiny.unet.conv_out, "forward", lambda each: forward(each) * torch.nan)
    inversion = Editor(tiny).invert(photos(1, SQUARE), ["a cat"], ddim().parameters)
    assert inversion.diverged == (True,)

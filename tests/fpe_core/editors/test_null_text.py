"""Null-text inversion: the embeddings, the edits, what it costs, and what it leaves behind."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from fpe_core import (
    Checkpoint,
    DdimEditing,
    Editor,
    FreePromptEditing,
    Inversion,
    LayersByLevel,
    MasaCtrl,
    NotApplicableError,
    ParameterError,
    load_checkpoint,
    row_counts,
)
from fpe_core.agreement import LATENT_TOLERANCE, latent_distance
from fpe_core.edit_call import finite_sources as _finite
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import caption, sample_scene
from tests.fpe_core.editors.cases import (
    SOURCES,
    SQUARE,
    STEPS,
    TARGETS,
    Case,
    check_exact,
    check_wrong,
    photos,
)
from tests.fpe_core.editors.naive import counted_rows


def ddim() -> Case:
    def expected(naive, z_0, s, n):
        trajectory = naive.invert(z_0, SOURCES[s])
        return naive.ddim(trajectory, TARGETS[s][n], naive.null_text(trajectory, SOURCES[s]))

    return Case(DdimEditing(), expected, inversion="null_text")


def fpe(size=SQUARE) -> Case:
    def expected(naive, z_0, s, n):
        trajectory = naive.invert(z_0, SOURCES[s])
        names = naive.null_text(trajectory, SOURCES[s])
        return naive.fpe(trajectory, SOURCES[s], TARGETS[s][n], 4, negative=names)

    method = FreePromptEditing(layers=LayersByLevel(2))
    return Case(method, expected, size=size, inversion="null_text")


EDITORS = {"ddim": ddim, "fpe": fpe}


@pytest.mark.parametrize("name", EDITORS)
def test_edits_equal_the_reference(checkpoint: Checkpoint, name: str) -> None:
    check_exact(checkpoint, EDITORS[name]())


@pytest.mark.parametrize("wrong", ["few_iterations", "not_carried_on", "noisier_target"])
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, wrong: str) -> None:
    check_wrong(tiny, ddim(), wrong, (1, 1))


def invert(editor: Editor, sources: list[int], **changes) -> Inversion:
    pictures, case = photos(3, SQUARE), fpe()
    return editor.invert(
        [pictures[s] for s in sources],
        [SOURCES[s] for s in sources],
        replace(case.parameters, **changes),
    )


def test_a_source_is_the_same_in_any_batch(tiny: Checkpoint) -> None:
    """Alone, among others in another order, and one at a time."""
    alone = invert(Editor(tiny), [1]).null_text
    together = invert(Editor(tiny), [2, 1, 0, 1]).null_text
    one_by_one = invert(Editor(tiny, max_rows=1), [0, 1]).null_text
    for made in (together.embeddings[1], together.embeddings[3], one_by_one.embeddings[1]):
        off = latent_distance(made, alone.embeddings[0])
        assert off <= LATENT_TOLERANCE[tiny.dtype]
    assert latent_distance(together.embeddings[0], alone.embeddings[0]) > 1e-3


def test_guided_sampling_of_the_source_stays_at_its_inversion() -> None:
    """With the built-in model: its own prompt gives the source back, which ordinary guidance does
    not."""
    editor = Editor(load_checkpoint("builtin:still-life", device="cpu"))
    scene = sample_scene(3000)
    parameters = replace(
        editor.checkpoint.default_parameters.edited_by(DdimEditing()), steps=8, guidance_scale=7.5
    )
    apart = {}
    for inversion in ("direct", "null_text"):
        own = replace(parameters, inversion=inversion)
        inverted = editor.invert([render(scene, 128)], [caption(scene)], own)
        made = editor.edit(inverted, [[caption(scene)]]).edits[0][0].latent
        apart[inversion] = float((made - inverted.trajectory[0, 0].cpu()).norm())
    assert apart["null_text"] < 0.5 * apart["direct"]
    assert inverted.null_text.losses.shape == (1, 8)
    assert inverted.null_text.in_words(0).startswith("null-text inversion: ")


def test_rows_are_counted_and_bounded(tiny: Checkpoint) -> None:
    editor = Editor(tiny)
    with counted_rows(tiny) as calls:
        inversion = invert(editor, [0, 1])
        result = editor.edit(inversion, [TARGETS[0], TARGETS[1]])
    assert sum(calls) == inversion.unet_rows + result.unet_rows
    most = row_counts(inversion.parameters, [], source_prompt=SOURCES[0]).inversion
    assert most == STEPS + 12 * STEPS
    assert 2 * (STEPS + 3 * STEPS) <= inversion.unet_rows <= 2 * most


def test_at_steps_without_guidance_nothing_is_optimised(tiny: Checkpoint) -> None:
    inversion = invert(Editor(tiny), [0], guidance_interval=(0.0, 0.5))
    null = inversion.null_text
    assert bool((null.losses[0, 3:] == 0).all())
    assert bool((null.embeddings[0, 3:] == null.embeddings[0, 2]).all())
    unguided = invert(Editor(tiny), [0], guidance_scale=1.0)
    assert unguided.unet_rows == 2 * STEPS


def test_an_unconditional_row_of_the_source_has_its_embeddings_too(tiny: Checkpoint) -> None:
    """MasaCtrl takes keys and values of that row; it differs from the one without a prompt."""
    editor = Editor(tiny)
    parameters = fpe().parameters.edited_by(MasaCtrl(steps=(0.2, 1.0)))
    inversion = editor.invert(photos(1, SQUARE), [SOURCES[0]], parameters)
    edited = editor.edit(inversion, [TARGETS[0]]).edits[0][0].latent
    direct = editor.edit(inversion, [TARGETS[0]], replace(parameters, inversion="direct"))
    assert latent_distance(edited, direct.edits[0][0].latent) > 1e-3


def test_nothing_is_left_behind_after_an_error(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No gradients on the network, and the next inversion is as if nothing had been raised."""
    editor, expected = Editor(tiny), invert(Editor(tiny), [0]).null_text.embeddings
    calls = iter(range(20))
    forward = tiny.unet.forward

    def failing(*args, **named):
        if next(calls) == 12:
            raise ValueError("in the middle")
        return forward(*args, **named)

    monkeypatch.setattr(tiny.unet, "forward", failing)
    with pytest.raises(ValueError, match="in the middle"):
        invert(editor, [0])
    monkeypatch.undo()
    assert torch.is_grad_enabled()
    assert not any(each.requires_grad or each.grad is not None for each in tiny.unet.parameters())
    assert torch.equal(invert(editor, [0]).null_text.embeddings, expected)


def test_memory_that_runs_out_halves_the_sources_at_once(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = tiny.unet.forward

    def small(sample, *args, **named):
        if torch.is_grad_enabled() and len(sample) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return forward(sample, *args, **named)

    expected = invert(Editor(tiny), [0, 1, 2]).null_text.embeddings
    monkeypatch.setattr(tiny.unet, "forward", small)
    made = invert(Editor(tiny), [0, 1, 2]).null_text.embeddings
    for one, other in zip(made, expected, strict=True):
        assert latent_distance(one, other) <= LATENT_TOLERANCE[tiny.dtype]


def test_half_precision_is_optimised_in_float32(tiny: Checkpoint) -> None:
    half = replace(
        tiny,
        unet=copy.deepcopy(tiny.unet).to(torch.bfloat16),
        text_encoder=copy.deepcopy(tiny.text_encoder).to(torch.bfloat16),
        vae=copy.deepcopy(tiny.vae).to(torch.bfloat16),
        dtype=torch.bfloat16,
    )
    inversion = invert(Editor(half), [0])
    assert inversion.null_text.embeddings.dtype == torch.float32
    assert half.unet.dtype == torch.bfloat16
    assert not inversion.diverged[0]


def test_what_is_missing_is_said(tiny: Checkpoint) -> None:
    editor, parameters = Editor(tiny), fpe().parameters
    inversion = editor.invert(photos(1, SQUARE), [""], parameters)
    with pytest.raises(NotApplicableError, match="no source prompt, which inversion null_text"):
        editor.edit(inversion, [["a dog"]])
    direct = editor.invert(photos(1, SQUARE), ["a cat"], replace(parameters, inversion="direct"))
    with pytest.raises(ParameterError, match="invert with inversion null_text"):
        editor.edit(direct, [["a dog"]], parameters)
    with pytest.raises(ParameterError, match="have embeddings that are optimised"):
        replace(parameters, negative_prompt="ugly")
    with pytest.raises(ParameterError, match="inversion null_text edits images"):
        editor.edit(editor.synthesise(["a cat"], [1], parameters), [["a dog"]])


def test_what_is_not_finite_has_diverged(tiny: Checkpoint) -> None:
    inversion = invert(Editor(tiny), [0, 1])
    inversion.null_text.embeddings[1, 3, 0, 0] = np.inf
    assert _finite(inversion.trajectory, inversion.null_text, None) == [True, False]

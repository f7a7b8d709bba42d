"""pix2pix_zero: the naive reference, rows, batches, what it leaves behind, refusals."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fpe_core import (
    Checkpoint,
    DdimEditing,
    EditInputs,
    Editor,
    EditParameters,
    Inside,
    Inversion,
    NotApplicableError,
    ParameterError,
    Pix2PixZero,
    load_checkpoint,
    row_counts,
)
from fpe_core.agreement import LATENT_TOLERANCE, latent_distance
from fpe_core.errors import RowsOutOfMemoryError
from fpe_core.regularised import (
    NoiseRegularisation,
    correlation_gradient,
    divergence_gradient,
)
from fpe_core.schedule import DDIMSchedule
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import caption, sample_scene
from tests.fpe_core.editors import naive_pix2pix_zero as naive_zero
from tests.fpe_core.editors.cases import (
    SOURCES,
    SQUARE,
    STEPS,
    TARGETS,
    WIDE,
    Case,
    check_batches,
    check_exact,
    check_rows,
    check_wrong,
    distance,
    masks,
    photos,
)
from tests.fpe_core.editors.naive import Naive, counted_rows
from tests.fpe_core.editors.test_masked_editors import of_latent

SENTENCES = (("the cat", "photo of the cat", "the cat"), ("the dog in snow", "a dog"))


def zero(
    size: tuple[int, int] = SQUARE,
    sentences: tuple[Sequence[str], Sequence[str]] | None = None,
    **changes: float,
) -> Case:
    source, target = sentences or ((), ())
    method = Pix2PixZero(source_sentences=tuple(source), target_sentences=tuple(target), **changes)

    def expected(naive: Naive, z_0: Tensor, s: int, n: int) -> Tensor:
        trajectory = naive_zero.invert(naive, z_0, SOURCES[s], photos(len(SOURCES), size)[s])
        return naive_zero.edit(
            naive,
            trajectory,
            SOURCES[s],
            TARGETS[s][n],
            sentences=sentences,
            size=method.cross_guidance,
        )

    return Case(method, expected, size=size)


def invert(editor: Editor, sources: Sequence[int] = (0, 1, 2), **changes) -> Inversion:
    pictures = photos(3, SQUARE)
    return editor.invert(
        [pictures[s] for s in sources],
        [SOURCES[s] for s in sources],
        replace(zero().parameters, **changes),
    )


def latents(editor: Editor, sources: Sequence[int] = (0, 1, 2), **changes) -> list[Tensor]:
    """Of all edits of these sources."""
    result = editor.edit(invert(editor, sources, **changes), [TARGETS[s] for s in sources])
    return [each.latent for edits in result.edits for each in edits]


@pytest.mark.parametrize("sentences", [None, SENTENCES], ids=["prompts", "sentences"])
def test_edits_equal_the_reference(
    checkpoint: Checkpoint, sentences: tuple[Sequence[str], Sequence[str]] | None
) -> None:
    check_exact(checkpoint, zero(sentences=sentences))


def test_edits_of_another_shape_equal_the_reference(tiny_float64: Checkpoint) -> None:
    """With two levels of the pyramid of the noise."""
    check_exact(tiny_float64, zero(WIDE, cross_guidance=0.05), max_rows=24, sources=[1, 2])


@pytest.mark.parametrize(
    "wrong",
    [
        "no_guidance",
        "no_regularisation",
        "no_divergence",
        "other_seed",
        "conditional_latent",
        "latent_not_moved",
        "empty_prompt",
    ],
)
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, wrong: str) -> None:
    """With moves large enough that it matters which latent is moved."""
    check_wrong(tiny, zero(cross_guidance=2.0), wrong, (1, 1))


def test_an_inversion_equals_the_reference(checkpoint: Checkpoint) -> None:
    """Every level of it."""
    made = invert(Editor(checkpoint)).trajectory
    for s, z in enumerate(made):
        naive = Naive(checkpoint, STEPS)
        expected = naive_zero.invert(naive, z[:1], SOURCES[s], photos(3, SQUARE)[s])
        assert (
            distance(z, torch.cat(expected))
            <= {torch.float32: 2e-4, torch.float64: 1e-10}[checkpoint.dtype]
        )


@pytest.mark.parametrize("size", [(16, 24), (17, 10), (9, 3), (2, 5), (64, 48)])
def test_the_gradients_are_those_of_the_losses(size: tuple[int, int]) -> None:
    """By autograd, with several levels and odd edges."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    heights = [size[0]]
    while heights[-1] > 8:
        heights.append(heights[-1] // 2)
    shifts = [torch.randint(1, max(2, h // 2), (2, 3), generator=generator) for h in heights]
    made = correlation_gradient(noise, shifts), divergence_gradient(noise)
    for s in range(2):
        own = [each[s].tolist() for each in shifts]
        losses = (lambda x, own=own: naive_zero.correlation(x, own)), naive_zero.divergence
        for gradient, loss in zip(made, losses, strict=True):
            expected = naive_zero.slope_of(loss, noise[s : s + 1])[0]
            torch.testing.assert_close(gradient[s], expected, rtol=1e-10, atol=1e-12)


def test_of_v_prediction_the_noise_is_regularised() -> None:
    """It is what the level's latent and velocity say."""
    schedule = DDIMSchedule((1, 501), (0.999, 0.9, 0.3), "v_prediction")
    z_0, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64).unbind()
    z = 0.9**0.5 * z_0 + 0.1**0.5 * noise
    velocity = 0.9**0.5 * noise - 0.1**0.5 * z_0
    torch.testing.assert_close(schedule.noise_of(z, velocity, 1), noise)
    plain = replace(schedule, prediction_type="epsilon")
    assert plain.noise_of(z, noise, 1) is noise
    torch.testing.assert_close(plain.invert_step(z, noise, 1), schedule.invert_step(z, velocity, 1))
    images = photos(1, SQUARE)
    one, other = (
        NoiseRegularisation(each, images, z).invert_step(z, output, 1)
        for each, output in ((plain, noise), (schedule, velocity))
    )
    torch.testing.assert_close(one, other)
    assert distance(one, plain.invert_step(z, noise, 1)) > 1e-3


def test_an_edit_is_the_same_in_any_batch(checkpoint: Checkpoint) -> None:
    check_batches(checkpoint, zero())


def test_two_runs_are_equal_bit_for_bit(tiny: Checkpoint) -> None:
    """So a run that was killed within an edit makes it again as if nothing had happened."""
    for one, other in zip(latents(Editor(tiny)), latents(Editor(tiny)), strict=True):
        assert torch.equal(one, other)


def test_larger_moves_keep_more_of_the_source() -> None:
    """With the built-in model, of a green cross that becomes red; its noise is nearer to white."""
    editor = Editor(load_checkpoint("builtin:still-life", device="cpu"))
    scene = sample_scene(3000)
    target = caption(scene).replace("green", "red")
    assert target != caption(scene)
    apart = []
    for size in (0.0, 1.0, 3.0):
        parameters = replace(
            editor.checkpoint.default_parameters.edited_by(Pix2PixZero(size)), steps=8
        )
        inversion = editor.invert([render(scene, 128)], [caption(scene)], parameters)
        made = editor.edit(inversion, [[target]]).edits[0][0].latent
        apart.append(float((made - inversion.trajectory[0, 0]).norm()))
    assert apart[0] > apart[1] > apart[2]
    plain = editor.invert(
        [render(scene, 128)], [caption(scene)], parameters.edited_by(DdimEditing())
    )
    assert abs(float(inversion.start.std()) - 1) < abs(float(plain.start.std()) - 1)


@pytest.mark.parametrize("edits", [1, 3])
def test_rows_are_those_of_the_formula(tiny: Checkpoint, edits: int) -> None:
    check_rows(tiny, zero(), edits, {})
    parameters = replace(zero().parameters, steps=50)
    counts = row_counts(parameters, [EditInputs()] * edits, source_prompt="a cat")
    assert (counts.inversion, counts.source, counts.edits) == (50, 50, 200 * edits)
    assert counts.backward == 100 * edits


@pytest.mark.parametrize(
    ("scale", "interval", "guided"),
    [(7.5, (0.0, 1.0), 6), (1.0, (0.0, 1.0), 0), (7.5, (0.0, 0.5), 3)],
)
def test_steps_without_guidance_have_one_row(
    tiny: Checkpoint, scale: float, interval: tuple[float, float], guided: int
) -> None:
    """Counted at the UNet, of several sources, in small batches; equal to the reference."""
    editor = Editor(tiny, max_rows=24)
    changes = {"guidance_scale": scale, "guidance_interval": interval}
    with counted_rows(tiny) as calls:
        inversion = invert(editor, **changes)
        result = editor.edit(inversion, TARGETS)
    counts = [
        row_counts(inversion.parameters, [EditInputs()] * len(each), source_prompt="a cat")
        for each in TARGETS
    ]
    assert sum(calls) == sum(each.total for each in counts)
    assert sum(calls) == inversion.unet_rows + result.unet_rows == editor.unet_rows
    assert sum(each.backward for each in counts) == 4 * (STEPS + guided)
    naive = Naive(tiny, STEPS, guidance=scale)
    trajectory = [each[None] for each in inversion.trajectory[1].clone()]
    expected = naive_zero.edit(
        naive, trajectory, SOURCES[1], TARGETS[1][1], guided=[n < guided for n in range(STEPS)]
    )
    assert distance(result.edits[1][1].latent, expected[0]) <= 2e-4


def test_a_source_without_edits_costs_nothing(tiny: Checkpoint) -> None:
    editor = Editor(tiny)
    inversion = invert(editor, [0, 1])
    result = editor.edit(inversion, [[], TARGETS[1]])
    assert result.unet_rows == STEPS + 2 * 4 * STEPS
    nothing = editor.edit(inversion, [[], []])
    assert (nothing.edits, nothing.unet_rows) == (((), ()), 0)


def test_nothing_is_left_behind_after_an_error(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a forward pass with gradients."""
    editor, expected = Editor(tiny), latents(Editor(tiny), [0])
    inversion = invert(editor, [0])
    own = dict(tiny.unet.attn_processors)
    hooks = sum(len(each._forward_hooks) for each in tiny.unet.modules())
    forward, calls = tiny.unet.mid_block.forward, iter(range(1000))

    def failing(*args, **named):
        if next(calls) == 7 and torch.is_grad_enabled():
            raise ValueError("in the middle")
        return forward(*args, **named)

    monkeypatch.setattr(tiny.unet.mid_block, "forward", failing)
    with pytest.raises(ValueError, match="in the middle"):
        editor.edit(inversion, [TARGETS[0]])
    monkeypatch.undo()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    left = tiny.unet.attn_processors
    assert left.keys() == own.keys()
    assert all(left[name] is each for name, each in own.items())
    assert sum(len(each._forward_hooks) for each in tiny.unet.modules()) == hooks
    assert not any(each.requires_grad or each.grad is not None for each in tiny.unet.parameters())
    again = editor.edit(inversion, [TARGETS[0]]).edits[0][0].latent
    assert torch.equal(again, expected[0])


def test_memory_that_runs_out_halves_the_rows_at_once(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source is evaluated once nevertheless, and what is counted is what was made."""
    expected = latents(Editor(tiny))
    forward = tiny.unet.forward

    def small(sample, *args, **named):
        if torch.is_grad_enabled() and len(sample) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return forward(sample, *args, **named)

    editor = Editor(tiny)
    inversion = invert(editor)
    monkeypatch.setattr(tiny.unet, "forward", small)
    result = editor.edit(inversion, TARGETS)
    made = [each.latent for edits in result.edits for each in edits]
    for one, other in zip(made, expected, strict=True):
        assert latent_distance(one, other) <= LATENT_TOLERANCE[tiny.dtype]
    assert result.unet_rows == 3 * STEPS + 4 * 4 * STEPS

    def none(sample, *args, **named):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(tiny.unet, "forward", none)
    with pytest.raises(RowsOutOfMemoryError):
        editor.edit(inversion, TARGETS)


def test_half_precision_is_edited_in_float32(tiny: Checkpoint) -> None:
    half = replace(
        tiny,
        unet=copy.deepcopy(tiny.unet).to(torch.bfloat16),
        text_encoder=copy.deepcopy(tiny.text_encoder).to(torch.bfloat16),
        vae=copy.deepcopy(tiny.vae).to(torch.bfloat16),
        dtype=torch.bfloat16,
    )
    editor = Editor(half)
    inversion = invert(editor, [0])
    dtypes = []
    handle = editor._exact_unet.register_forward_pre_hook(
        lambda _module, args: dtypes.append(args[0].dtype)
    )
    edit = editor.edit(inversion, [TARGETS[0]]).edits[0][0]
    handle.remove()
    assert set(dtypes) == {torch.float32}
    assert half.unet.dtype == torch.bfloat16
    assert inversion.trajectory.dtype == edit.latent.dtype == torch.float32
    assert edit.is_finite


def test_a_mask_that_binds_is_the_inversions_latent_outside(tiny: Checkpoint) -> None:
    drawn, plain = masks(SQUARE)[1], zero()

    def expected(naive: Naive, z_0: Tensor, s: int, n: int) -> Tensor:
        trajectory = naive_zero.invert(naive, z_0, SOURCES[s], photos(len(SOURCES), SQUARE)[s])
        naive.mask = of_latent(drawn)
        naive.bound = naive.mask, trajectory
        return naive_zero.edit(naive, trajectory, SOURCES[s], TARGETS[s][n])

    inputs = [[EditInputs(mask=drawn) for _ in each] for each in TARGETS]
    bound = Case(plain.method, expected, inputs, inside=Inside())
    result = check_exact(tiny, bound)
    source = np.asarray(bound.invert(Editor(tiny)).images[1])
    same = (np.asarray(result.edits[1][0].image) == source).all(axis=-1)
    assert same[~drawn].all()
    assert same[drawn].mean() < 0.5
    check_wrong(tiny, bound, "cleaner", (1, 1))


def test_what_is_missing_is_said(tiny: Checkpoint) -> None:
    editor, parameters = Editor(tiny), zero().parameters
    inversion = editor.invert(photos(1, SQUARE), [""], parameters)
    with pytest.raises(NotApplicableError, match="no source prompt"):
        editor.edit(inversion, [["a dog"]])
    assert parameters.not_applicable("", "a dog") == "no source prompt"
    sources = editor.synthesise(["a cat"], [1], parameters)
    with pytest.raises(ParameterError, match=r"pix2pix_zero edits images"):
        editor.edit(sources, [["a dog"]])
    assert "not a synthetic one" in parameters.not_applicable("a cat", "a dog", synthetic=True)


def test_an_inversion_of_another_kind_is_refused(tiny: Checkpoint) -> None:
    """Either way: it would silently be another edit."""
    editor, own = Editor(tiny), zero().parameters
    plain = own.edited_by(DdimEditing())
    for inverted, asked in ((own, plain), (plain, own)):
        inversion = editor.invert(photos(1, SQUARE), ["a cat"], inverted)
        with pytest.raises(ParameterError, match="regularises the inversion"):
            editor.edit(inversion, [["a dog"]], asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inversion": "negative_prompt"}, "inversion must be direct"),
        ({"inversion": "null_text"}, "inversion must be direct"),
        ({"negative_prompt": "ugly"}, "negative_prompt must be empty"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(
    changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        EditParameters(**changes).edited_by(Pix2PixZero())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cross_guidance": -0.1}, "cross_guidance"),
        ({"cross_guidance": "0.1"}, "cross_guidance"),
        ({"source_sentences": ["a cat"]}, "give both or neither"),
        ({"source_sentences": "a cat", "target_sentences": ["a dog"]}, "a list of texts"),
        ({"source_sentences": ["a cat"], "target_sentences": [" "]}, "a list of texts"),
        ({"source_sentences": [1], "target_sentences": ["a dog"]}, "a list of texts"),
    ],
)
def test_a_parameter_out_of_range_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Pix2PixZero.of(values)


def test_sentences_are_in_the_record() -> None:
    method = Pix2PixZero.of({"source_sentences": ["a cat"], "target_sentences": ["a dog"]})
    assert method.source_sentences == ("a cat",)
    assert method.to_dict()["target_sentences"] == ["a dog"]
    assert Pix2PixZero.of({k: v for k, v in method.to_dict().items() if k != "name"}) == method


def test_it_keeps_more_of_the_source_by_larger_moves() -> None:
    assert Pix2PixZero().keeping(0.5) == Pix2PixZero(0.15)
    assert Pix2PixZero().keeping(-0.5) == Pix2PixZero(0.05)
    assert Pix2PixZero().keeping(-1.0) == Pix2PixZero(0.0)

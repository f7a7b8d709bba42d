"""Prompt-to-Prompt against maps that are written out, and its alignment of words by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fpe_core import (
    Checkpoint,
    EditInputs,
    Editor,
    NotApplicableError,
    ParameterError,
    PromptToPrompt,
)
from fpe_core.editors.words import refined, replaced, word_tokens
from fpe_core.errors import PromptError
from fpe_core.unet.text_encoders import token_ids
from tests.fpe_core.editors.cases import (
    SQUARE,
    STEPS,
    WIDE,
    Case,
    check_batches,
    check_exact,
    check_rows,
    check_wrong,
    distance,
)
from tests.fpe_core.editors.naive import WINDOW, Naive

PROMPTS = {
    0: ("photo of the red cat", ["photo of the blue cat"]),
    1: ("the dog in snow", ["the red dog in snow", "the cat in snow"]),
    2: ("a blue car", ["a car in red snow"]),
}
# Places of tokens from 0, the first special token; every word of these prompts is one token. By
# hand: which token of the target is which of the source.
SAME = {
    (0, 0): {0: 0, 1: 1, 2: 2, 3: 3, 5: 5, 6: 6},
    (1, 0): {0: 0, 1: 1, 3: 2, 4: 3, 5: 4, 6: 5},
    (1, 1): {0: 0, 1: 1, 3: 3, 4: 4, 5: 5},
    (2, 0): {0: 0, 1: 1, 2: 3, 6: 4},
}
LENGTH = {(0, 0): 7, (1, 0): 7, (1, 1): 6, (2, 0): 7}


def by_hand(edit: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrix of the source's columns and the share of the edit's own."""
    given, own = torch.zeros(WINDOW, WINDOW).double(), torch.zeros(WINDOW).double()
    for j in range(WINDOW):
        if j >= LENGTH[edit]:
            given[j, j] = 1
        elif j in SAME[edit]:
            given[SAME[edit][j], j] = 1
        else:
            own[j] = 1
    return given, own


def p2p(size=SQUARE, inversion="direct", inputs=None, words=None, scales=(), **changes) -> Case:
    """`words`: per edit the places of the blend words' tokens; `scales`: (place, factor)."""
    method = PromptToPrompt(**changes)

    def expected(naive, z_0, s, n):
        given, own = by_hand((s, n))
        for place, factor in scales:
            given[:, place] *= factor
            own[place] *= factor
        dtype = z_0.dtype
        source, targets = PROMPTS[s]
        return naive.p2p(
            naive.invert(z_0, source),
            source,
            targets[n],
            given=given.to(dtype),
            own=own.to(dtype),
            cross=2,
            within=3,
            words=None if words is None else words[s, n],
            threshold=method.blend_threshold,
            start=1,
            negative=source if inversion == "negative_prompt" else None,
        )

    return Case(
        method,
        expected,
        inputs,
        sources=[source for source, _ in PROMPTS.values()],
        targets=[targets for _, targets in PROMPTS.values()],
        size=size,
        inversion=inversion,
    )


BLEND_WORDS = [
    [EditInputs(blend_words=("cat", "blue cat"))],
    [EditInputs(blend_words=("dog", "red")), EditInputs(blend_words=("dog", "Cat"))],
    [EditInputs(blend_words=("blue car", "car"))],
]
PLACES = {(0, 0): ([5], [4, 5]), (1, 0): ([2], [2]), (1, 1): ([2], [2]), (2, 0): ([2, 3], [2])}


def blended(size=(128, 128), **changes) -> Case:
    return p2p(size, inputs=BLEND_WORDS, words=PLACES, blend_threshold=0.97, **changes)


def scaled() -> Case:
    """The factor 3 for the same place of every target, by words of their own."""
    words = [["the"], ["dog", "in"], ["in"]]
    inputs = [[EditInputs(word_scales=((w, 3.0),)) for w in each] for each in words]
    return p2p(inputs=inputs, scales=[(3, 3.0)])


@pytest.mark.parametrize("make", [p2p, blended, scaled], ids=["refine", "local blend", "reweight"])
def test_edits_equal_the_reference(checkpoint: Checkpoint, make) -> None:
    result = check_exact(checkpoint, make())
    if make is blended:
        shares = [edit.mask.double().mean() for edits in result.edits for edit in edits]
        assert all(0 < share < 1 for share in shares), "masks that bind"
        assert len(set(shares)) > 1


@pytest.mark.parametrize("make", [p2p, blended], ids=["refine", "local blend"])
def test_edits_of_another_shape_equal_the_reference(tiny_float64: Checkpoint, make) -> None:
    check_exact(tiny_float64, make(size=WIDE), max_rows=3, sources=[1])


def test_negative_prompt_inversion_equals_the_reference(tiny_float64: Checkpoint) -> None:
    check_exact(tiny_float64, p2p(inversion="negative_prompt"), sources=[0, 1])


def test_words_are_replaced_one_by_one(checkpoint: Checkpoint) -> None:
    """Words of one token each: the maps are the source's as they are."""
    case = p2p(controller="replace")
    editor = Editor(checkpoint)
    source, target = "the dog in snow", "the cat in snow"
    result = editor.edit(case.invert(editor), [[], [target], []])

    def expected(naive, z_0, *_):
        one = torch.eye(WINDOW, dtype=z_0.dtype)
        nothing = torch.zeros(WINDOW, dtype=z_0.dtype)
        trajectory = naive.invert(z_0, source)
        return naive.p2p(trajectory, source, target, given=one, own=nothing, cross=2, within=3)

    check_exact(
        checkpoint,
        replace(case, expected=expected, targets=[[], [target], []]),
        sources=[1],
    )
    refining = editor.edit(case.invert(editor), [[], [target], []], p2p().parameters)
    assert distance(result.edits[1][0].latent, refining.edits[1][0].latent) > 1e-2


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (p2p(), "no_self"),
        (p2p(), "no_cross"),
        (p2p(), "unaligned"),
        (p2p(), "unconditional"),
        (p2p(), "all_layers"),
        (p2p(), "one_step_off"),
        (blended(), "no_blend"),
        (blended(), "noisier"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, case, wrong) -> None:
    check_wrong(tiny, case, wrong, (1, 0))


@pytest.mark.parametrize("make", [p2p, blended], ids=["refine", "local blend"])
def test_an_edit_is_the_same_in_any_batch(tiny: Checkpoint, make) -> None:
    check_batches(tiny, make())


@pytest.mark.parametrize("edits", [1, 3])
@pytest.mark.parametrize(
    ("case", "formula", "total"),
    [(p2p(), {"S": 30}, "81 + 99*N"), (blended(), {"S": 50}, "101 + 99*N")],
    ids=["refine", "local blend"],
)
def test_rows_are_those_of_the_formula(tiny: Checkpoint, case, formula, total, edits) -> None:
    check_rows(tiny, case, edits, formula)
    values = {"T": 50, "N": edits, **formula}
    assert eval(case.method.rows_formula, values) == eval(total, values)


def test_edits_with_and_without_words_in_one_call(tiny: Checkpoint) -> None:
    """Each is what it is alone, in its place."""
    case = blended()
    editor = Editor(tiny)
    inversion = case.invert(editor, [1])
    targets = [PROMPTS[1][1]]
    mixed = editor.edit(inversion, targets, inputs=[[EditInputs(), BLEND_WORDS[1][1]]]).edits[0]
    whole = editor.edit(inversion, targets).edits[0]
    words = editor.edit(inversion, targets, inputs=[BLEND_WORDS[1]]).edits[0]
    assert mixed[0].mask is None
    assert torch.equal(mixed[1].mask, words[1].mask)
    assert distance(mixed[0].latent, whole[0].latent) < 1e-5
    assert distance(mixed[1].latent, words[1].latent) < 1e-5
    assert distance(mixed[1].latent, whole[1].latent) > 1e-2


# --- words and tokens ----------------------------------------------------------------------------


@pytest.fixture
def tokens(tiny: Checkpoint):
    return lambda text: token_ids(tiny.tokenizer, text)


@pytest.mark.parametrize("edit", SAME)
def test_tokens_are_matched_as_by_hand(tokens, edit) -> None:
    source, targets = PROMPTS[edit[0]]
    mix = refined(tokens, WINDOW, source, targets[edit[1]])
    given, own = by_hand(edit)
    assert np.array_equal(mix.given, given.numpy())
    assert np.array_equal(mix.own, own.numpy())


def test_a_word_of_several_tokens_shares_out_its_source(tokens) -> None:
    """ "dog" is one token, "sun" three, "up" two: the words behind them stay matched."""
    assert [len(span) for span in word_tokens(tokens, "the dog sun up")] == [1, 1, 3, 2]
    mix = replaced(tokens, WINDOW, "the dog sun red", "the sun up red")
    wanted = np.zeros((WINDOW, WINDOW))
    wanted[0, 0] = wanted[1, 1] = 1
    wanted[2, 2:5] = 1 / 3  # dog -> s u n
    wanted[3:6, 5:7] = 1 / 2  # s u n -> u p
    wanted[6, 7] = wanted[7, 8] = 1  # red, and the last token
    for j in range(9, WINDOW):
        wanted[j - 1, j] = 1
    assert np.allclose(mix.given, wanted)
    assert not mix.own.any()


def test_punctuation_and_case_do_not_hide_a_word(tokens) -> None:
    prompt = "Photo of the red cat, in snow."
    inputs = EditInputs(blend_words=("cat", "SNOW"))
    assert PromptToPrompt().not_applicable(prompt, prompt, inputs) == ""
    mix = PromptToPrompt().token_mix(tokens, WINDOW, prompt, prompt, inputs)
    assert np.flatnonzero(mix.source_words).tolist() == [5]
    assert np.flatnonzero(mix.target_words).tolist() == [8]
    assert np.array_equal(mix.given, np.eye(WINDOW))


@pytest.mark.parametrize(
    ("source", "target", "inputs", "method", "reason"),
    [
        ("", "a dog", EditInputs(), PromptToPrompt(), "no source prompt"),
        ("a cat", "a red dog", EditInputs(), PromptToPrompt("replace"), "has 2 words, the target"),
        ("a cat", "a dog", EditInputs(blend_words=("cow", "dog")), PromptToPrompt(), "'cow' are"),
        ("a cat", "a dog", EditInputs(word_scales=(("cat", 2.0),)), PromptToPrompt(), "'cat' are"),
    ],
)
def test_what_does_not_fit_is_not_applicable(
    tiny: Checkpoint, source, target, inputs, method, reason
) -> None:
    assert reason in method.not_applicable(source, target, inputs)
    editor, case = Editor(tiny), replace(p2p(), method=method, sources=[source])
    inversion = case.invert(editor)
    with pytest.raises(NotApplicableError, match=reason):
        editor.edit(inversion, [[target]], inputs=[[inputs]])


def test_words_behind_the_window_are_an_error(tokens) -> None:
    prompt = "red " * 80 + "snow"
    inputs = EditInputs(blend_words=("snow", "snow"))
    with pytest.raises(PromptError, match="'snow' are not in"):
        PromptToPrompt().token_mix(tokens, WINDOW, prompt, prompt, inputs)


def test_a_level_without_attention_is_refused(tiny: Checkpoint) -> None:
    editor, case = Editor(tiny), blended(blend_level=16)
    with pytest.raises(ParameterError, match=r"at level 16 .* levels 1, 2, 4, 8"):
        editor.edit(case.invert(editor, [1]), [PROMPTS[1][1]], inputs=[BLEND_WORDS[1]])


def test_a_source_that_is_sampled_beside_its_edits(tiny_float64: Checkpoint) -> None:
    """From a prompt and a seed: the reference samples it first, and pins it to that."""
    case = blended()
    editor = Editor(tiny_float64)
    source, targets = PROMPTS[1]
    sources = editor.synthesise([source], [5], case.parameters)
    made = editor.edit(sources, [targets], inputs=[BLEND_WORDS[1]]).edits[0][0]
    reference = Naive(tiny_float64, STEPS)
    trajectory = [sources.noise]
    for k in reversed(range(STEPS)):
        z = trajectory[0]
        outputs = reference.unet([z, z], k, ["", source])
        z = reference.move(z, reference.guided(outputs[:1], outputs[1:]), k + 1, k)
        trajectory.insert(0, z)
    given, own = by_hand((1, 0))
    expected = reference.p2p(
        trajectory,
        source,
        targets[0],
        given=given,
        own=own,
        cross=2,
        within=3,
        words=PLACES[1, 0],
        threshold=0.97,
        start=1,
    )
    assert distance(made.latent, expected[0]) <= 1e-10
    assert torch.equal(made.mask, reference.mask)

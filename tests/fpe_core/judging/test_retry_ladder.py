"""The retry ladder: the parameters of a rejected edit's next attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fpe_core import (
    BlendedLatent,
    DdimEditing,
    DiffEdit,
    EditMethod,
    EditParameters,
    LayersByRange,
    LayersByTokens,
    MasaCtrl,
    ParameterError,
    PlugAndPlay,
    PromptToPrompt,
    SdEdit,
)
from fpe_core.judging.retry_ladder import Change, RetryLadder
from fpe_core.judging.rules import RejectReason

FIRST = EditParameters(replaced_fraction=0.6, guidance_scale=4.0)
LESS, LEAST = Change(replaced_fraction=0.4), Change(replaced_fraction=0.2)
MORE = Change(layers=LayersByRange(1, 16), guidance_scale=6.0)
LADDER = RetryLadder(
    {RejectReason.NO_CHANGE: (LESS, LEAST), RejectReason.STRUCTURE_LOST: (MORE,)}, most=3
)


def climb(ladder: RetryLadder, *reasons: RejectReason, **options: bool) -> list[EditParameters]:
    """The parameters of all attempts at an edit that is rejected for these reasons in turn."""
    tried: list[tuple[EditParameters, RejectReason]] = []
    parameters: EditParameters | None = FIRST
    for reason in reasons:
        if parameters is None:
            break
        tried.append((parameters, reason))
        parameters = ladder.next_parameters(FIRST, tried, **options)
    return [each for each, _ in tried] + ([] if parameters is None else [parameters])


def test_a_reason_has_its_own_changes_in_their_order() -> None:
    no = RejectReason.NO_CHANGE
    assert climb(LADDER, no, no, no, no) == [
        FIRST,
        replace(FIRST, replaced_fraction=0.4),
        replace(FIRST, replaced_fraction=0.2),
    ]


def test_changes_are_of_the_first_parameters_and_not_of_each_other() -> None:
    tries = climb(LADDER, RejectReason.NO_CHANGE, RejectReason.STRUCTURE_LOST)
    assert tries[-1] == replace(FIRST, layers=LayersByRange(1, 16), guidance_scale=6.0)


def test_what_was_tried_is_not_tried_again() -> None:
    again = Change(replaced_fraction=FIRST.replaced_fraction)
    ladder = RetryLadder({RejectReason.NO_CHANGE: (again, LESS, LESS)}, most=5)
    no = RejectReason.NO_CHANGE
    assert climb(ladder, no, no, no) == [FIRST, replace(FIRST, replaced_fraction=0.4)]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_tries_are_bounded(most: int) -> None:
    changes = tuple(Change(guidance_scale=5.0 + n) for n in range(9))
    ladder = RetryLadder({RejectReason.OFF_TARGET: changes}, most=most)
    assert len(climb(ladder, *[RejectReason.OFF_TARGET] * 9)) == 1 + most


def test_a_reason_without_changes_ends_it() -> None:
    assert climb(LADDER, RejectReason.WRONG_DIRECTION) == [FIRST]


def test_a_synthetic_source_keeps_its_guidance() -> None:
    (_, second) = climb(LADDER, RejectReason.STRUCTURE_LOST, keeps_guidance=True)
    assert second == replace(FIRST, layers=LayersByRange(1, 16))
    only_guidance = RetryLadder({RejectReason.OFF_TARGET: (Change(guidance_scale=9.0),)})
    assert climb(only_guidance, RejectReason.OFF_TARGET, keeps_guidance=True) == [FIRST]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("scale", [1.0, 4.0, 100.0])
@pytest.mark.parametrize("reason", [*RejectReason])
def test_the_default_ladder_suits_any_parameters(
    fraction: float, scale: float, reason: RejectReason
) -> None:
    first = replace(FIRST, replaced_fraction=fraction, guidance_scale=scale)
    ladder = RetryLadder(most=4)
    tried = [(first, reason)]
    while (parameters := ladder.next_parameters(first, tried)) is not None:
        assert parameters.replaced_fraction * (1 if reason == RejectReason.NO_CHANGE else 0) <= max(
            fraction - 0.1, 0.0
        ), "an edit that changed nothing asks for less replacement"
        tried.append((parameters, reason))
    assert len({parameters for parameters, _ in tried}) == len(tried)


def test_the_default_ladder_follows_the_reason() -> None:
    """What the first change and the others set: less or more replacement, more guidance."""
    of = {reason: climb(RetryLadder(most=4), *[reason] * 5)[1:] for reason in RejectReason}
    less = of[RejectReason.NO_CHANGE]
    assert [each.replaced_fraction for each in less] == pytest.approx([0.4, 0.2])
    assert {each.guidance_scale for each in less} == {FIRST.guidance_scale}
    structure = of[RejectReason.STRUCTURE_LOST]
    assert [each.replaced_fraction for each in structure] == pytest.approx([0.8] * 3)
    assert structure[0].guidance_scale > FIRST.guidance_scale
    assert [each.layers for each in structure[:2]] == [FIRST.layers] * 2
    assert structure[2].layers == LayersByTokens(2**31), "every layer at last"
    for reason in (RejectReason.OFF_TARGET, RejectReason.WRONG_DIRECTION):
        guided, both = of[reason]
        assert guided == replace(FIRST, guidance_scale=6.0), "more guidance, and nothing else"
        assert both.guidance_scale == 6.0
        assert both.replaced_fraction < FIRST.replaced_fraction
    assert of[RejectReason.SOURCE_NOT_RECONSTRUCTED] == [], "another try changes no source"


def test_mistakes_are_told() -> None:
    with pytest.raises(ParameterError, match="changes at least one"):
        Change()
    with pytest.raises(ParameterError, match="1 to 10"):
        RetryLadder(most=0)
    with pytest.raises(ParameterError, match="1 to 10"):
        RetryLadder(most=11)


def test_a_retry_that_would_sample_no_step_is_left_out() -> None:
    """0.1 of 5 steps is less than one: it would be refused in the middle of a block."""
    first = EditParameters(steps=5, guidance_scale=4.0).edited_by(SdEdit(strength=0.3))
    lost = RejectReason.STRUCTURE_LOST
    second = RetryLadder(most=5).next_parameters(first, [(first, lost)])
    assert second == replace(first, guidance_scale=6.0)
    assert RetryLadder(most=5).next_parameters(first, [(first, lost), (second, lost)]) is None


@pytest.mark.parametrize(
    ("method", "freer", "closer"),
    [
        (SdEdit(strength=0.5), SdEdit(strength=0.7), SdEdit(strength=0.3)),
        (
            PromptToPrompt(),
            PromptToPrompt(cross_fraction=0.2, self_fraction=0.4),
            PromptToPrompt(cross_fraction=0.6, self_fraction=0.8),
        ),
        (
            PlugAndPlay(),
            PlugAndPlay(attention_fraction=0.3, residual_fraction=0.6),
            PlugAndPlay(attention_fraction=0.7, residual_fraction=1.0),
        ),
        (MasaCtrl(), MasaCtrl(steps=(0.28, 1.0)), MasaCtrl(steps=(0.0, 1.0))),
        (DiffEdit(), DiffEdit(mask_threshold=0.3), DiffEdit(encode_ratio=0.6)),
        (DdimEditing(), DdimEditing(), DdimEditing()),
        (BlendedLatent(), BlendedLatent(), BlendedLatent()),
    ],
    ids=lambda each: each.name,
)
def test_another_method_is_tried_again_with_its_own_shares(
    method: EditMethod, freer: EditMethod, closer: EditMethod
) -> None:
    """And never with more of the inversion than the first attempt had."""
    first = EditParameters(guidance_scale=4.0).edited_by(method)
    changed = {
        reason: RetryLadder().next_parameters(first, [(first, reason)])
        for reason in (RejectReason.NO_CHANGE, RejectReason.STRUCTURE_LOST)
    }
    expected = first.edited_by(freer)
    assert changed[RejectReason.NO_CHANGE] == (None if expected == first else expected)
    louder = replace(first.edited_by(closer), guidance_scale=6.0)
    assert changed[RejectReason.STRUCTURE_LOST] == louder
    needed = method.rule.inverted_steps(50)
    assert all(each.rule.inverted_steps(50) <= needed for each in (freer, closer))

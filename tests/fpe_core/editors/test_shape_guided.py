"""shape_guided: the naive reference, its own inversions, rows, batches, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fpe_core import (
    AttentionRegions,
    Checkpoint,
    DdimEditing,
    EditInputs,
    Editor,
    EditParameters,
    EditRule,
    Injection,
    Inside,
    LayersByLevel,
    NotApplicableError,
    ParameterError,
    RegionPrompts,
    ShapeGuided,
    row_counts,
)
from fpe_core.editors.region_prompts import shared_tokens
from fpe_core.unet.exchange import Exchange, Regions
from fpe_core.unet.regions import masks_by_positions
from tests.fpe_core.editors import naive as reference
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
    photos,
)
from tests.fpe_core.editors.naive import Maps, Naive, counted_rows, map_of
from tests.fpe_core.editors.test_masked_editors import of_latent

HALF = 38
"""Tokens of each region in a window of 77."""
PROMPTS = [
    [RegionPrompts("the red cat", "photo", "the green cat", "snow")],
    [RegionPrompts("dog", "in snow", "the cat", "in snow"), RegionPrompts("dog", "in snow", "car")],
    [RegionPrompts()],
]
"""Inversions that the edits of a source share, although their own prompts differ."""


def naive_edit(
    naive: Naive, z_0: Tensor, mask: np.ndarray, prompts: Sequence[str], scale: float
) -> Tensor:
    """Both passes with explicit maps; `prompts`: source inside, outside, target inside, outside."""
    shared = [_shared(naive, *prompts[0::2]), _shared(naive, *prompts[1::2])]
    if naive.wrong == "shared_scaled":
        shared = [set(), set()]
    source, target = _joined(naive, *prompts[:2]), _joined(naive, *prompts[2:])
    plain = [set(), set()] if naive.wrong != "shared_in_inversion" else shared
    attend = _attend(naive, mask, z_0, scale, plain)
    trajectory = [z_0]
    for k in range(naive.steps):
        own = None if naive.wrong == "plain_inversion" else attend
        output = naive.unet([trajectory[-1]], k, [source], own)
        trajectory.append(naive.move(trajectory[-1], output, k, k + 1))
    naive.mask, z = of_latent(mask), trajectory[-1]
    if naive.bound is not None:
        naive.bound = naive.bound[0], trajectory
    attend = _attend(naive, mask, z_0, scale, shared)
    for k in reversed(range(naive.steps)):
        outputs = naive.unet([z, z], k, [naive.negative, target], attend)
        z = naive.move(z, naive.guided(outputs[:1], outputs[1:]), k + 1, k)
        z = torch.where(naive.mask, z, trajectory[k + 1 if naive.wrong == "noisier" else k])
    return z


def _joined(naive: Naive, inside: str, outside: str) -> str:
    """A name of the empty prompt's embedding with the two prompts' tokens."""
    if naive.wrong == "swapped":
        inside, outside = outside, inside
    made = naive.text("").clone()
    made[:, 1 : HALF + 1] = naive.text(inside)[:, 1 : HALF + 1]
    made[:, HALF + 1 : 2 * HALF + 1] = naive.text(outside)[:, 1 : HALF + 1]
    name = f"joined {inside} and {outside}"
    reference._TEXTS[id(naive.checkpoint), name] = made
    return name


def _shared(naive: Naive, source: str, target: str) -> set[int]:
    tokenizer = naive.checkpoint.tokenizer
    one, other = (
        tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
        for text in (source, target)
    )
    words = other.index(tokenizer.eos_token_id)
    found = set()
    for kind, _, _, first, end in SequenceMatcher(None, one, other).get_opcodes():
        if kind == "equal":
            found |= set(range(first, end))
    return {place for place in found if 1 <= place < words and place <= HALF}


def _attend(
    naive: Naive, mask: np.ndarray, z: Tensor, scale: float, shared: Sequence[set[int]]
) -> Maps:
    """Weights of the maps multiplied, row by row of the map."""
    sides, height, width = {}, z.shape[-2], z.shape[-1]
    for _ in range(5):  # as convolutions of stride 2 reduce the latent
        small = Image.fromarray(mask.astype(np.uint8)).resize(
            (width, height), Image.Resampling.NEAREST
        )
        sides[height * width] = torch.from_numpy(np.asarray(small).astype(bool).ravel())
        height, width = -(-height // 2), -(-width // 2)
    columns = torch.zeros(2, 77, dtype=z.dtype)
    columns[0, 1 : HALF + 1] = columns[1, HALF + 1 : 2 * HALF + 1] = scale
    for side in (0, 1):
        columns[side, [side * HALF + place for place in shared[side]]] = 1.0

    def attend(is_self: bool, _layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        maps, inside = map_of(query, key), sides[query.shape[2]]
        if is_self:
            weights = (inside[:, None] == inside[None]).to(z.dtype)
        else:
            weights = columns[(~inside).long()]
        kept = maps.clone()
        maps = maps * weights
        if naive.wrong == "renormalised":
            maps = maps / maps.sum(-1, keepdim=True).clamp(min=1e-9)
        if naive.wrong == ("no_self" if is_self else "no_cross"):
            maps = kept
        if naive.wrong == "conditional_only" and len(query) == 2:
            maps = torch.cat([kept[:1], maps[1:]])
        return maps @ value

    return attend


def case(size: tuple[int, int] = SQUARE, negative: str = "", scale: float = 2.5) -> Case:
    drawn = masks(size)

    def expected(naive: Naive, z_0: Tensor, s: int, n: int) -> Tensor:
        given = PROMPTS[s][n]
        outside = given.source_outside or SOURCES[s]
        prompts = (
            given.source_inside or SOURCES[s],
            outside,
            given.target_inside or TARGETS[s][n],
            given.target_outside or outside,
        )
        return naive_edit(naive, z_0, drawn[s], prompts, scale)

    inputs = [
        [EditInputs(mask=drawn[s], region_prompts=each) for each in of_source]
        for s, of_source in enumerate(PROMPTS)
    ]
    return Case(ShapeGuided(scale), expected, inputs, size=size, negative=negative)


@pytest.mark.parametrize("negative", ["", "snow"])
def test_edits_equal_the_reference(checkpoint: Checkpoint, negative: str) -> None:
    """One and two edits a source, three sources with a mask each."""
    result = check_exact(checkpoint, case(negative=negative))
    assert all(0 < edit.mask.double().mean() < 1 for edits in result.edits for edit in edits)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_other_scales_equal_the_reference(tiny_float64: Checkpoint, scale: float) -> None:
    check_exact(tiny_float64, case(scale=scale), sources=[1])


@pytest.mark.parametrize("size", [WIDE, (88, 120), (40, 64)])
def test_edits_of_another_shape_equal_the_reference(
    tiny_float64: Checkpoint, size: tuple[int, int]
) -> None:
    """3 : 2, and latents of odd sizes, which halving rounds up."""
    check_exact(tiny_float64, case(size), max_rows=3, sources=[0, 1])


@pytest.mark.parametrize(
    "wrong",
    [
        "no_self",
        "no_cross",
        "renormalised",
        "noisier",
        "shared_scaled",
        "shared_in_inversion",
        "plain_inversion",
        "conditional_only",
        "swapped",
    ],
)
def test_a_wrong_procedure_is_a_hundred_tolerances_off(tiny: Checkpoint, wrong: str) -> None:
    check_wrong(tiny, case(), wrong, (1, 0))


def test_an_edit_is_the_same_in_any_batch(checkpoint: Checkpoint) -> None:
    check_batches(checkpoint, case())


@pytest.mark.parametrize("edits", [1, 3])
def test_rows_are_those_of_the_formula(tiny: Checkpoint, edits: int) -> None:
    check_rows(tiny, case(), edits, {"V": 1})
    values = {"T": 50, "N": edits, "V": 1}
    assert eval(ShapeGuided.rows_formula, values) == 50 + 100 * edits


@pytest.mark.parametrize(
    ("guidance", "interval", "of_an_edit"),
    [(4.5, (0.0, 1.0), 20), (1.0, (0.0, 1.0), 10), (4.5, (0.2, 0.7), 15)],
)
def test_an_inversion_is_made_once_for_all_edits_that_agree_on_it(
    tiny: Checkpoint, guidance: float, interval: tuple[float, float], of_an_edit: int
) -> None:
    """On the source, its mask and its prompts, whatever the edits are told."""
    one, other = masks(SQUARE)[:2]
    inputs = [
        EditInputs(mask=one),
        EditInputs(mask=one.copy(), region_prompts=RegionPrompts(target_inside="snow")),
        EditInputs(mask=one, region_prompts=RegionPrompts(source_inside="the cat")),
        EditInputs(mask=one, blend_words=("the cat", "the dog")),
        EditInputs(mask=other),
    ]
    parameters = EditParameters(
        steps=10, guidance_scale=guidance, guidance_interval=interval, width_px=64, height_px=64
    ).edited_by(ShapeGuided())
    editor = Editor(tiny)
    with counted_rows(tiny) as calls:
        inversion = editor.invert(photos(2, SQUARE), SOURCES[:2], parameters)
        assert (inversion.unet_rows, inversion.trajectory.shape[1]) == (0, 1)
        result = editor.edit(inversion, [["a"] * 5, ["a"]], inputs=[inputs, inputs[:1]])
    counts = [
        row_counts(parameters, given, source_prompt=prompt)
        for given, prompt in zip([inputs, inputs[:1]], SOURCES, strict=False)
    ]
    assert [(each.inversion, each.source, each.edits) for each in counts] == [
        (0, 30, 5 * of_an_edit),
        (0, 10, of_an_edit),
    ]
    assert sum(each.total for each in counts) == result.unet_rows == sum(calls)


def test_prompts_that_are_not_given_follow_a_rule() -> None:
    method = ShapeGuided()
    sides = "a red cup on a table", "a blue cup on a table"
    words = EditInputs(blend_words=("red cup", "blue cup"))
    assert method.region_prompts(*sides, EditInputs()) == (sides[0], sides[0], sides[1], sides[0])
    assert method.region_prompts(*sides, words) == ("red cup", sides[0], "blue cup", sides[0])
    given = replace(words, region_prompts=RegionPrompts(source_outside="wood", target_inside="ice"))
    assert method.region_prompts(*sides, given) == ("red cup", "wood", "ice", "wood")


@pytest.mark.parametrize(
    ("source", "target", "places"),
    [
        ("photo of the red cat", "photo of the green cat", [1, 2, 3, 8]),
        ("the dog", "a cat", []),
        ("the dog", "a red dog", [3]),
        ("dog", "", []),
        ("snow " * 60, "snow " * 60, range(1, 39)),
    ],
)
def test_shared_tokens(tiny: Checkpoint, source: str, target: str, places: Sequence[int]) -> None:
    """Of words ("green" has four tokens); not of the end token, and none behind the half."""
    assert shared_tokens(lambda text: tiny.tokenizer(text).input_ids, 77, source, target) == [
        *places
    ]


def test_what_does_not_fit_its_half_is_said(tiny: Checkpoint) -> None:
    editor, made = Editor(tiny), case()
    long = " ".join(["snow"] * 38 + ["red", "car"])
    inputs = replace(made.all_inputs[0][0], region_prompts=RegionPrompts(target_inside=long))
    edits = editor.edit(made.invert(editor, [0]), [["a dog"]], inputs=[[inputs]]).edits[0]
    assert edits[0].truncated_prompt == "red car"
    edits = editor.edit(made.invert(editor, [0]), [["a dog"]], inputs=[made.all_inputs[0]]).edits[0]
    assert edits[0].truncated_prompt == ""


def test_outside_the_mask_the_latent_is_the_source_s(tiny: Checkpoint) -> None:
    """Bit for bit."""
    made = case()
    editor = Editor(tiny)
    inversion = made.invert(editor, [0])
    for mask in (masks(SQUARE)[0], np.zeros((64, 64), bool), np.ones((64, 64), bool)):
        inputs = [[replace(made.all_inputs[0][0], mask=mask)]]
        latent = editor.edit(inversion, [["the dog"]], inputs=inputs).edits[0][0].latent
        kept = ~of_latent(mask)
        assert latent.isfinite().all()
        assert torch.equal(latent[:, kept], inversion.trajectory[0, 0][:, kept])


def test_a_mask_that_binds_serves_both(tiny_float64: Checkpoint) -> None:
    """The area, the mask grown by the padding, splits attention too."""
    plain = case()
    inside = Inside(padding_px=8)
    area = np.zeros((64, 64), bool)
    area[:40, :40] = True  # of the first mask, 32 x 32

    def expected(naive: Naive, z_0: Tensor, _s: int, _n: int) -> Tensor:
        return naive_edit(naive, z_0, area, PROMPTS[0][0], 2.5)

    bound = replace(plain, expected=expected, inside=inside)
    check_exact(tiny_float64, bound, sources=[0])
    editor = Editor(tiny_float64)
    inversion = bound.invert(editor, [0])
    edits = editor.edit(inversion, [TARGETS[0]], inputs=[bound.all_inputs[0]]).edits[0]
    same = (np.asarray(edits[0].image) == np.asarray(inversion.images[0])).all(axis=-1)
    assert same[~area].all()
    assert same[area].mean() < 0.5


def test_nothing_of_it_stays_for_the_next_edit(tiny: Checkpoint) -> None:
    made, editor = case(), Editor(tiny)
    ddim = made.parameters.edited_by(DdimEditing())
    inversion = editor.invert(photos(1, SQUARE), SOURCES[:1], ddim)
    before = editor.edit(inversion, [["a dog"]], ddim).edits[0][0].latent
    editor.edit(inversion, [TARGETS[0]], made.parameters, inputs=[made.all_inputs[0]])
    after = editor.edit(inversion, [["a dog"]], ddim).edits[0][0].latent
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("inputs", "prompt", "reason"),
    [
        (EditInputs(), "a cat", "no mask"),
        (EditInputs(mask=masks(SQUARE)[0]), " ", "no source prompt"),
        (EditInputs(), "", "no source prompt, no mask"),
        (EditInputs(mask=masks(SQUARE)[0], blend_words=("cat", "dog")), "", "no source prompt"),
        (
            EditInputs(mask=masks(SQUARE)[0], region_prompts=RegionPrompts("cat", "grass")),
            "",
            "",
        ),
    ],
)
def test_what_is_missing_is_named(
    tiny: Checkpoint, inputs: EditInputs, prompt: str, reason: str
) -> None:
    assert ShapeGuided().not_applicable(prompt, "a dog", inputs) == reason
    editor = Editor(tiny)
    inversion = editor.invert(photos(1, SQUARE), [prompt], case().parameters)
    if reason:
        with pytest.raises(NotApplicableError, match=reason):
            editor.edit(inversion, [["a dog"]], inputs=[[inputs]])
    else:
        assert editor.edit(inversion, [["a dog"]], inputs=[[inputs]]).edits[0][0].is_finite


def test_what_it_cannot_do_is_refused(tiny: Checkpoint) -> None:
    parameters = case().parameters
    for inversion in ("negative_prompt", "null_text"):
        with pytest.raises(ParameterError, match="shape_guided inverts with its edits' masks"):
            replace(parameters, inversion=inversion)
    with pytest.raises(ParameterError, match="cross_scale must be >= 0"):
        ShapeGuided(-1.0)
    with pytest.raises(ParameterError, match="takes nothing of the source"):
        EditRule((Injection("self", LayersByLevel(2), "qk", (0, 1)),), regions=AttentionRegions())
    editor = Editor(tiny)
    one = EditInputs(mask=masks(SQUARE)[0])
    assert "not a synthetic one" in parameters.not_applicable("a", "b", one, synthetic=True)
    sources = editor.synthesise(["a cat"], [1], parameters)
    with pytest.raises(ParameterError, match="cannot edit a source that is synthesised"):
        editor.edit(sources, [["a dog"]], inputs=[[one]])
    small = EditInputs(mask=np.ones((60, 64), bool))
    with pytest.raises(ParameterError, match="a mask must be bool and of the edit's size"):
        editor.edit(
            editor.invert(photos(1, SQUARE), ["a cat"], parameters), [["a dog"]], inputs=[[small]]
        )


def test_a_call_without_edits_makes_none(tiny: Checkpoint) -> None:
    editor = Editor(tiny)
    inversion = editor.invert(photos(1, SQUARE), ["a cat"], case().parameters)
    result = editor.edit(inversion, [[]])
    assert (result.edits, result.unet_rows) == (((),), 0)


def test_such_a_pass_is_no_cuda_graph() -> None:
    regions = Regions({}, torch.zeros(1, 77), torch.zeros(1, 77))
    assert Exchange().is_of_maps
    assert not Exchange(regions=regions).is_of_maps


@pytest.mark.parametrize("size", [(64, 64), (192, 128), (88, 120), (40, 24), (8, 8), (520, 776)])
def test_a_mask_at_every_level_is_the_nearest_pixel_s(size: tuple[int, int]) -> None:
    """By exact numbers, and as Pillow has it."""
    width, height = size
    mask = np.random.default_rng(0).random((height, width)) < 0.5
    grids = [(height // 8, width // 8)]
    for _ in range(3):
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    made = masks_by_positions([mask], grids, torch.device("cpu"))
    for tall, wide in grids:
        down, right = (
            [floor((i + Fraction(1, 2)) * Fraction(pixels, count)) for i in range(count)]
            for pixels, count in ((height, tall), (width, wide))
        )
        assert made[tall * wide].tolist() == [mask[down][:, right].ravel().tolist()]
        if max(size) < 500:  # Pillow adds up rounded numbers, and is a pixel off in large ones
            small = Image.fromarray(mask.astype(np.uint8)).resize(
                (wide, tall), Image.Resampling.NEAREST
            )
            assert mask[down][:, right].tolist() == np.asarray(small).astype(bool).tolist()


def test_a_retry_moves_the_scale() -> None:
    assert ShapeGuided().keeping(0.2) == ShapeGuided(2.0)
    assert ShapeGuided().keeping(-0.2) == ShapeGuided(3.0)
    assert ShapeGuided(0.0).keeping(1.0) == ShapeGuided(0.0)

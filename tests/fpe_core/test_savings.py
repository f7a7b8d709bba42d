"""Computations that an edit saves, as the number of rows that reach the UNet's modules.

That the images stay the same is tested by test_against_reference.py.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from fpe_core import (
    Checkpoint,
    CheckpointError,
    Editor,
    EditParameters,
    Inversion,
    LayersByRange,
    LayersByTokens,
    SyntheticSources,
)
from fpe_core.agreement import LATENT_TOLERANCE, latent_distance
from fpe_core.reference import Reference
from fpe_core.unet.attention import select_layers, self_attention_layers
from fpe_core.unet.forward import embed_timestep, forward
from fpe_core.unet.parts import parts_of
from fpe_core.unet.prompts import TextKeys

PARAMETERS = EditParameters(
    steps=3, replaced_fraction=0.7, layers=LayersByTokens(16), width_px=64, height_px=64
)
T, R = PARAMETERS.steps, PARAMETERS.replaced_steps
TARGETS = ["a dog", "snow"]
N = len(TARGETS)


@contextmanager
def rows_through(unet: torch.nn.Module, names: Sequence[str]) -> Iterator[dict[str, int]]:
    """Counts rows at the outputs of the named modules, independently of the editor."""
    rows = dict.fromkeys(names, 0)

    def counter(name: str):
        def count(_module, _inputs, output) -> None:
            rows[name] += len(output)

        return count

    handles = [unet.get_submodule(name).register_forward_hook(counter(name)) for name in names]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def rows_per_call(unet: torch.nn.Module) -> Iterator[list[int]]:
    """Rows of each call of the UNet, in order."""
    rows: list[int] = []
    # The first layer that has all rows: before it, rows may be shared.
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_q
    handle = attention.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()


def replaced_layers(checkpoint: Checkpoint) -> list[str]:
    """Module names of the replaced self-attention layers, in order of execution."""
    layers = select_layers(self_attention_layers(checkpoint.unet, 8, 8), PARAMETERS.layers)
    return [layer.processor_name.removesuffix(".processor") for layer in layers]


@pytest.mark.parametrize("max_rows", [64, 2])
def test_a_real_source_s_row_ends_in_the_last_replaced_layer(
    tiny: Checkpoint, photos: list[Image.Image], max_rows: int
) -> None:
    assert R == 2
    editor = Editor(tiny, max_rows=max_rows)
    inversion = editor.invert(photos, ["a cat"] * 3, PARAMETERS)
    first, *_, last = replaced_layers(tiny)
    block = last.rpartition(".")[0]
    reached = [f"{first}.to_q", f"{first}.to_v", f"{last}.to_q", f"{last}.to_k"]
    not_reached = [
        f"{last}.to_v",
        f"{last}.to_out.0",
        f"{block}.attn2.to_q",
        f"{block}.ff",
        "conv_out",
    ]
    with rows_through(tiny.unet, [*reached, *not_reached]) as rows:
        editor.edit(inversion, [TARGETS] * 3)
    # At the first step all edits of a source share an unconditional row (see below).
    sources, targets, replaced = 3 * R, 3 * (2 * T * N - (N - 1)), 3 * R * N
    assert rows[f"{first}.to_v"] == sources + targets
    for name in (f"{first}.to_q", f"{last}.to_q", f"{last}.to_k"):
        assert rows[name] == sources + targets - replaced, "replaced rows take the source's"
    assert {rows[name] for name in not_reached} == {targets}


@pytest.mark.parametrize("source_prompts", [["a cat"] * 3, ["snow"] * 3, ["a cat", "snow", ""]])
@pytest.mark.parametrize("kind", ["real", "synthetic", "real, nothing replaced"])
def test_the_first_step_has_one_unconditional_row_for_all_edits_of_a_source(
    tiny: Checkpoint, photos: list[Image.Image], kind: str, source_prompts: list[str]
) -> None:
    """Whatever the source's own rows are. The edits are the same as alone."""
    parameters = dataclasses.replace(PARAMETERS, steps=2, negative_prompt="snow")
    if kind.endswith("nothing replaced"):
        parameters = dataclasses.replace(parameters, replaced_fraction=0.0)
    editor = Editor(tiny)
    if kind == "synthetic":
        sources: Inversion | SyntheticSources = editor.synthesise(
            source_prompts, [1, 2, 3], parameters
        )
    else:
        sources = editor.invert(photos, source_prompts, parameters)
    targets = [["a dog", "the car", "snow"], [], ["a red cat"]]
    with rows_per_call(tiny.unet) as rows:
        result = editor.edit(sources, targets)
    edits, sources_with_edits = 4, 2
    if kind == "real":
        assert rows == [3, sources_with_edits + edits, 2 * edits]
    elif kind == "synthetic":
        assert rows == [6, sources_with_edits + edits, 6, 2 * edits]
    else:
        assert rows == [sources_with_edits + edits, 2 * edits]
    assert result.unet_rows == sum(rows)
    for s, prompts in enumerate(targets):
        for target, edit in zip(prompts, result.edits[s], strict=True):
            expected = _alone(tiny, sources, s, target, parameters)
            assert latent_distance(edit.latent, expected) <= LATENT_TOLERANCE[torch.float32]


@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_a_step_outside_the_guidance_interval_has_no_unconditional_row(
    tiny: Checkpoint, photos: list[Image.Image], kind: str
) -> None:
    parameters = dataclasses.replace(PARAMETERS, steps=4, replaced_fraction=0.5)
    editor = Editor(tiny)
    made = {}
    for interval in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.3, 0.4)):
        limited = dataclasses.replace(parameters, guidance_interval=interval)
        if kind == "real":
            sources: Inversion | SyntheticSources = editor.invert(photos, ["a cat"] * 3, limited)
        else:
            sources = editor.synthesise(["a cat"] * 3, [1, 2, 3], limited)
        with rows_per_call(tiny.unet) as rows:
            result = editor.edit(sources, [TARGETS] * 3)
        assert result.unet_rows == sum(rows)
        made[interval] = rows
    # Three sources with N edits each; real ones have rows while maps are replaced, two steps long.
    one, two, first = 3 * N, 6 * N, 3 * N + 3
    if kind == "real":
        assert made[0.0, 1.0] == [3, first, 3, two, two, two]
        assert made[0.0, 0.5] == [3, first, 3, two, one, one]
        assert made[0.5, 1.0] == [3, one, 3, one, two, two]
        assert made[0.3, 0.4] == [3, one, 3, one, one, one], "no step lies in between"
    else:
        assert made[0.0, 1.0] == [6, first, 6, two, 6, two, 6, two]
        assert made[0.0, 0.5] == [6, first, 6, two, 3, one, 3, one]
        assert made[0.5, 1.0] == [3, one, 3, one, 6, two, 6, two]


def _alone(
    checkpoint: Checkpoint,
    sources: Inversion | SyntheticSources,
    s: int,
    target: str,
    parameters: EditParameters,
    is_replaced: Callable[[int, int], bool] = lambda _position, tokens: tokens <= 16,
) -> torch.Tensor:
    """An edit's final latent by the reference, which shares nothing."""
    reference = Reference(
        unet=checkpoint.unet,
        text_encoder=checkpoint.text_encoder,
        tokenizer=checkpoint.tokenizer,
        steps=parameters.steps,
        guidance_scale=parameters.guidance_scale,
        replaced_fraction=parameters.replaced_fraction,
        is_replaced=is_replaced,
        negative_prompt=parameters.negative_prompt,
    )
    if isinstance(sources, SyntheticSources):
        noise = sources.noise[s : s + 1]
        return reference.edit_synthetic(noise, sources.source_prompts[s], target)[1][0]
    z_0 = sources.trajectory[s : s + 1, 0]
    return reference.edit_real(z_0, sources.source_prompts[s], target)[0]


def cross_attention_layers(checkpoint: Checkpoint) -> list[str]:
    return [name for name, _ in checkpoint.unet.named_modules() if name.endswith("attn2")]


def test_text_keys_and_values_are_computed_once_for_each_prompt(
    tiny: Checkpoint, photos: list[Image.Image]
) -> None:
    layers = cross_attention_layers(tiny)
    projections = [f"{layer}.{name}" for layer in layers for name in ("to_k", "to_v")]
    editor = Editor(tiny, max_rows=4)
    with rows_through(tiny.unet, projections) as rows:
        inversion = editor.invert(photos, ["a cat", "", "a cat"], PARAMETERS)
    assert set(rows.values()) == {2}, "two prompts among three sources"
    with rows_through(tiny.unet, projections) as rows:
        editor.edit(inversion, [TARGETS] * 3)
    prompts = {"a cat", "", *TARGETS}
    assert set(rows.values()) == {len(prompts)}


def passed(
    unet: torch.nn.Module,
    latents: torch.Tensor,
    text: torch.Tensor,
    latent_of_row: torch.Tensor | None = None,
    **keys: int,
) -> torch.Tensor:
    """One pass at timestep 7; every row of `text` is a prompt of its own."""
    parts = parts_of(unet)
    prompts = TextKeys(parts.cross_attentions, text, **keys).of_rows(torch.arange(len(text)))
    output, _ = forward(parts, latents, embed_timestep(unet, 7), prompts, latent_of_row)
    assert output is not None
    return output


def test_kept_text_keys_and_values_are_those_of_the_layer_itself(tiny: Checkpoint) -> None:
    """One pass through the UNet with them and without, and the bound on what is kept."""
    sample, prompts = torch.randn(3, 4, 8, 8), torch.tensor([1, 0, 1])
    embeddings = torch.randn(2, 77, tiny.unet.config.cross_attention_dim)
    parts = parts_of(tiny.unet)
    width = sum(attn.to_k.out_features for attn in parts.cross_attentions)
    needed_bytes = 2 * 2 * 77 * width * 4
    first = f"{cross_attention_layers(tiny)[0]}.to_k"
    with torch.inference_mode():
        expected = tiny.unet(sample, 7, encoder_hidden_states=embeddings[prompts]).sample
        for most_bytes, computed in ((needed_bytes, 2), (needed_bytes - 1, 3)):
            with rows_through(tiny.unet, [first]) as rows:
                keys = TextKeys(parts.cross_attentions, embeddings, most_bytes=most_bytes)
                text = keys.of_rows(prompts)
                step = embed_timestep(tiny.unet, 7)
                made, _ = forward(parts, sample, step, text, None)
            assert rows[first] == computed
            assert made is not None
            assert latent_distance(made, expected) <= 1e-5
        wrong = passed(tiny.unet, sample, embeddings.flip(0)[prompts])
    assert latent_distance(wrong, expected) > 1e-4, "the embeddings matter"


def test_what_rows_have_in_common_is_computed_once(
    tiny: Checkpoint, photos: list[Image.Image]
) -> None:
    """Up to the first cross-attention, and the time embedding: counted, with rows in chunks too."""
    prefix = "down_blocks.0.attentions.0.transformer_blocks.0"
    shared = ["conv_in", "down_blocks.0.resnets.0", f"{prefix}.attn1.to_v"]
    counted = [*shared, f"{prefix}.attn2.to_q", "time_embedding", "conv_out"]
    inversion = Editor(tiny).invert(photos, None, PARAMETERS)
    edits = 3 * N
    for max_rows in (64, 6):  # six: no chunk ends among the rows of a latent
        with rows_through(tiny.unet, counted) as rows:
            result = Editor(tiny, max_rows=max_rows).edit(inversion, [TARGETS] * 3)
        # At the first step each source's edits have one unconditional row together.
        assert rows["conv_out"] == 3 + edits + 2 * edits * (T - 1)
        assert result.unet_rows == rows["conv_out"] + 3 * R
        assert rows[f"{prefix}.attn2.to_q"] == result.unet_rows
        for name in shared:
            assert rows[name] == 3 * R + 3 + edits * (T - 1), name
        assert rows["time_embedding"] == T, "once a step"


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_shared_rows_equal_diffusers_own_forward_pass(
    tiny_float64: Checkpoint, size: tuple[int, int]
) -> None:
    """To rounding: rows in another memory layout meet other kernels."""
    unet = tiny_float64.unet
    latents = torch.randn(2, 4, *size).double()
    text = torch.randn(4, 77, unet.config.cross_attention_dim).double()
    twice = torch.tensor([0, 1, 0, 1])
    with torch.inference_mode():
        alone = unet(latents, 7, encoder_hidden_states=text[:2]).sample
        assert latent_distance(passed(unet, latents, text[:2]), alone) <= 1e-13
        together = unet(latents[twice], 7, encoder_hidden_states=text).sample
        assert latent_distance(passed(unet, latents, text, twice), together) <= 1e-13
        other = passed(unet, latents, text, twice.flip(0))
    assert latent_distance(other, together) > 1e-2


def chunked(unet: Any) -> None:
    unet.mid_block.attentions[0].transformer_blocks[0].set_chunk_feed_forward(1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda unet: setattr(unet.up_blocks[1], "s1", 0.9), "FreeU is on"),
        (lambda unet: unet.register_to_config(class_embed_type="timestep"), "class_embed_type"),
        (lambda unet: unet.set_attention_slice(1), "transformers are of another kind"),
        (chunked, "transformers are of another kind"),
    ],
)
def test_a_unet_of_another_kind_is_refused(
    tiny: Checkpoint, change: Callable[[Any], None], message: str
) -> None:
    unet = copy.deepcopy(tiny.unet)
    change(unet)
    with pytest.raises(CheckpointError, match=message):
        Editor(dataclasses.replace(tiny, unet=unet))


def test_a_unet_without_a_middle_is_of_the_family() -> None:
    """Distilled ones have none (arXiv 2305.15798)."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type=None,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    ).double()
    latents, text = torch.randn(2, 4, 8, 8).double(), torch.randn(2, 77, 16).double()
    with torch.inference_mode():
        expected = unet(latents, 7, encoder_hidden_states=text).sample
        assert latent_distance(passed(unet, latents, text), expected) <= 1e-13


def test_layers_that_differ_from_the_start_share_what_is_before_them(
    tiny: Checkpoint, photos: list[Image.Image]
) -> None:
    parameters = dataclasses.replace(PARAMETERS, layers=LayersByRange(1, 2), replaced_fraction=1.0)
    inversion = Editor(tiny).invert(photos[:1], ["a cat"], parameters)
    first = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"
    with rows_through(tiny.unet, ["conv_in", first]) as rows:
        Editor(tiny).edit(inversion, [["a dog"]])
    assert rows == {"conv_in": 2 * T, first: 3 * T}
    expected = _alone(tiny, inversion, 0, "a dog", parameters, lambda position, _: position <= 2)
    made = Editor(tiny).edit(inversion, [["a dog"]]).edits[0][0].latent
    assert latent_distance(made, expected) <= 2 * LATENT_TOLERANCE[torch.float32]

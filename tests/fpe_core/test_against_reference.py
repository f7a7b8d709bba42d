"""The editor against the naive reference: equal, and different if a mistake is made on purpose."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from fpe_core import Editor, EditParameters, LayersByRange, LayersByTokens
from fpe_core.reference import MISTAKES, Reference
from fpe_core.schedule import seeded_noise

STEPS = 10
SOURCE_PROMPTS = ["photo of the red cat", "", "the dog in snow"]
TARGETS = [
    ["photo of the green cat"],
    ["the blue car", "a red dog", "snow"],
    ["the cat in snow", "the dog in green snow"],
]
# At 64 px the tiny model's levels have 64, 16, 4 and 1 tokens: <= 16 selects layers 3-13, as <=
# 1024 does in SD 1.5 at 512 px.
RULES = {
    "tokens": (LayersByTokens(16), lambda _position, tokens: tokens <= 16),
    "range": (LayersByRange(4, 14), lambda position, _tokens: 4 <= position <= 14),
}
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-10}


def relative_difference(a: Tensor, b: Tensor) -> float:
    assert a.isfinite().all()
    return float((a.double() - b.double()).norm() / b.double().norm())


def parameters_for(rule: str, **changes) -> EditParameters:
    values = {
        "steps": STEPS,
        "guidance_scale": 7.5,
        "layers": RULES[rule][0],
        "replaced_fraction": 0.8,
        "width_px": 64,
        "height_px": 64,
    }
    return EditParameters(**{**values, **changes})


def reference_for(checkpoint, rule: str, **changes) -> Reference:
    return Reference(
        unet=checkpoint.unet,
        text_encoder=checkpoint.text_encoder,
        tokenizer=checkpoint.tokenizer,
        steps=STEPS,
        guidance_scale=7.5,
        replaced_fraction=0.8,
        is_replaced=RULES[rule][1],
        **changes,
    )


@pytest.fixture(scope="module", params=["float32", "float64"])
def checkpoint(request, tiny, tiny_float64):
    return tiny if request.param == "float32" else tiny_float64


@pytest.fixture(scope="module", params=["tokens", "range"])
def rule(request) -> str:
    return request.param


@dataclasses.dataclass(frozen=True)
class Made:
    """Trajectories of the photos and latents of their edits, (steps + 1, C, h, w) and (C, h, w)."""

    trajectories: list[Tensor]
    edits: list[list[Tensor]]


@pytest.fixture(scope="module")
def expected(checkpoint, rule, photos) -> Made:
    """The photos, inverted and edited by the reference, which starts from the editor's z_0."""
    inversion = Editor(checkpoint).invert(photos, SOURCE_PROMPTS, parameters_for(rule))
    reference = reference_for(checkpoint, rule)
    made = Made([], [])
    for s, targets in enumerate(TARGETS):
        z_0 = inversion.trajectory[s : s + 1, 0]
        trajectory, _ = reference.invert(z_0, SOURCE_PROMPTS[s])
        made.trajectories.append(torch.stack(trajectory, dim=1)[0])
        edits = (reference.edit_real(z_0, SOURCE_PROMPTS[s], target) for target in targets)
        made.edits.append([latents[0] for latents in edits])
    return made


@pytest.mark.parametrize("max_rows", [64, 3], ids=["one chunk", "chunks of 3"])
def test_real_edits_equal_the_reference(checkpoint, rule, photos, expected, max_rows):
    editor = Editor(checkpoint, max_rows=max_rows)
    inversion = editor.invert(photos, SOURCE_PROMPTS, parameters_for(rule))
    result = editor.edit(inversion, TARGETS)
    tolerance = TOLERANCE[checkpoint.dtype]
    for s, targets in enumerate(TARGETS):
        assert relative_difference(inversion.trajectory[s], expected.trajectories[s]) <= tolerance
        for edit, latent, target in zip(result.edits[s], expected.edits[s], targets, strict=True):
            assert relative_difference(edit.latent, latent) <= tolerance, target


def test_synthetic_edits_equal_the_reference(checkpoint, rule):
    editor = Editor(checkpoint, max_rows=64)
    seeds = [1, 2, 3]
    sources = editor.synthesise(SOURCE_PROMPTS, seeds, parameters_for(rule))
    result = editor.edit(sources, TARGETS)
    reference = reference_for(checkpoint, rule)
    for s, targets in enumerate(TARGETS):
        noise = seeded_noise(seeds[s], (1, 4, 8, 8)).to(checkpoint.dtype)
        for edit, target in zip(result.edits[s], targets, strict=True):
            _, expected = reference.edit_synthetic(noise, SOURCE_PROMPTS[s], target)
            assert relative_difference(edit.latent, expected[0]) <= TOLERANCE[checkpoint.dtype]


@dataclasses.dataclass(frozen=True)
class LimitedGuidance(Reference):
    """The reference, with guidance scale 1 at the steps that are not in `guided`."""

    guided: range = range(STEPS)

    def _step(self, z_source, z, context, k, inversion_maps):
        if self.steps - 1 - k in self.guided:
            return super()._step(z_source, z, context, k, inversion_maps)
        unguided = dataclasses.replace(self, guidance_scale=1.0, guided=range(STEPS))
        return unguided._step(z_source, z, context, k, inversion_maps)


@pytest.mark.parametrize(
    ("kind", "interval"),
    [("real", (0.0, 0.6)), ("real", (0.2, 0.9)), ("synthetic", (0.3, 0.8))],
)
def test_limited_guidance_is_scale_1_outside_the_interval(tiny, photos, kind, interval):
    """Equal to the reference with scale 1 at these steps, far from the one guided throughout."""
    parameters = parameters_for("range", guidance_interval=interval)
    editor = Editor(tiny, max_rows=5)
    if kind == "real":
        sources = editor.invert(photos, SOURCE_PROMPTS, parameters)
    else:
        sources = editor.synthesise(SOURCE_PROMPTS, [1, 2, 3], parameters)
    made = editor.edit(sources, TARGETS).edits[1][2].latent
    source, target = SOURCE_PROMPTS[1], TARGETS[1][2]
    whole = reference_for(tiny, "range")
    limited = LimitedGuidance(**vars(whole), guided=parameters.guided_steps)
    expected, other = (
        reference.edit_real(sources.trajectory[1:2, 0], source, target)[0]
        if kind == "real"
        else reference.edit_synthetic(sources.noise[1:2], source, target)[1][0]
        for reference in (limited, whole)
    )
    assert relative_difference(made, expected) <= TOLERANCE[torch.float32]
    assert relative_difference(made, other) >= 50 * TOLERANCE[torch.float32]


def test_the_synthesised_source_is_the_reference_s(checkpoint):
    editor = Editor(checkpoint)
    sources = editor.synthesise(["the red dog"], [7], parameters_for("tokens"))
    image = editor.edit(sources, [["the blue dog"]]).source_images[0]
    reference = reference_for(checkpoint, "tokens")
    noise = seeded_noise(7, (1, 4, 8, 8)).to(checkpoint.dtype)
    expected, _ = reference.edit_synthetic(noise, "the red dog", "the blue dog")
    vae = checkpoint.vae
    with torch.no_grad():
        pixels = vae.decode(expected / vae.config.scaling_factor).sample[0]
    pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    assert (torch.from_numpy(np.array(image)).int() - pixels.int()).abs().max() <= 1


@pytest.fixture(scope="module")
def real_edits(tiny, rule, photos):
    """The inversion of the photos, and the result of the editor for it."""
    editor = Editor(tiny)
    inversion = editor.invert(photos, SOURCE_PROMPTS, parameters_for(rule))
    return inversion, editor.edit(inversion, TARGETS)


@pytest.mark.parametrize(
    "wrong",
    MISTAKES,
)
def test_a_wrong_procedure_misses_by_a_hundred_tolerances(tiny, rule, real_edits, wrong):
    """Negative controls: the comparison above would notice each of these mistakes."""
    inversion, result = real_edits
    reference = reference_for(tiny, rule, wrong=wrong)
    for s, target in itertools.product(range(3), [0]):
        expected = reference.edit_real(
            inversion.trajectory[s : s + 1, 0], SOURCE_PROMPTS[s], TARGETS[s][target]
        )[0]
        difference = relative_difference(result.edits[s][target].latent, expected)
        assert difference >= 100 * TOLERANCE[torch.float32]


def test_a_negative_prompt_is_the_unconditional_row(tiny, photos):
    editor = Editor(tiny)
    parameters = parameters_for("tokens", negative_prompt="snow")
    inversion = editor.invert(photos[:1], ["the cat"], parameters)
    result = editor.edit(inversion, [["the dog"]])
    z_0 = inversion.trajectory[:1, 0]
    right = reference_for(tiny, "tokens", negative_prompt="snow").edit_real(
        z_0, "the cat", "the dog"
    )
    without = reference_for(tiny, "tokens").edit_real(z_0, "the cat", "the dog")
    assert relative_difference(result.edits[0][0].latent, right[0]) <= 2e-4
    assert relative_difference(result.edits[0][0].latent, without[0]) >= 2e-3


def test_cross_attention_replaced_as_well_equals_the_reference_that_does_so(tiny, rule, photos):
    parameters = parameters_for(rule, replace_cross_attention=True)
    editor = Editor(tiny, max_rows=5)
    inversion = editor.invert(photos, SOURCE_PROMPTS, parameters)
    result = editor.edit(inversion, TARGETS)
    reference = reference_for(tiny, rule, wrong="cross_attention_replaced")
    for s, targets in enumerate(TARGETS):
        z_0 = inversion.trajectory[s : s + 1, 0]
        for edit, target in zip(result.edits[s], targets, strict=True):
            expected = reference.edit_real(z_0, SOURCE_PROMPTS[s], target)[0]
            assert relative_difference(edit.latent, expected) <= TOLERANCE[torch.float32], target

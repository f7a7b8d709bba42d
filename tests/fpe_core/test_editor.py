"""Properties of the editor: what it counts, what it promises about batches, memory and models."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from fpe_core import (
    Editor,
    EditParameters,
    LayersByRange,
    LayersByTokens,
    ParameterError,
    PromptError,
    RowsOutOfMemoryError,
    load_checkpoint,
)
from fpe_core.inversion import Inversion
from fpe_core.schedule import seeded_noise
from tests.builders.tiny_checkpoint import build_tiny_checkpoint

SMALL = EditParameters(
    steps=10, guidance_scale=7.5, layers=LayersByTokens(16), width_px=64, height_px=64
)


class CountingUNet:
    """Counts what really goes through a UNet, independently of what the editor reports.

    At the first cross-attention, which has all rows: what is before it, rows may share.
    """

    def __init__(self, unet: torch.nn.Module) -> None:
        self.rows = 0
        self.largest = 0
        attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_q
        self._handle = attention.register_forward_pre_hook(self._count)

    def _count(self, _module, inputs) -> None:
        self.rows += len(inputs[0])
        self.largest = max(self.largest, len(inputs[0]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc) -> None:
        self._handle.remove()


@pytest.mark.parametrize("edits", [1, 3])
@pytest.mark.parametrize("max_rows", [1, 5, 64])
def test_rows_of_a_real_source(tiny, photos, edits, max_rows):
    """50 + 40 + 1 + 99 N, counted at the UNet and reported, whatever the row limit."""
    editor = Editor(tiny, max_rows=max_rows)
    parameters = dataclasses.replace(SMALL, steps=50, replaced_fraction=0.8)
    with CountingUNet(tiny.unet) as counted:
        inversion = editor.invert(photos[:1], ["the cat"], parameters)
        result = editor.edit(inversion, [["a dog", "a red cat", "snow"][:edits]])
    assert inversion.unet_rows == 50
    assert counted.rows == inversion.unet_rows + result.unet_rows == 50 + 40 + 1 + 99 * edits
    assert counted.largest <= max_rows


def test_rows_of_a_synthetic_source(tiny):
    editor = Editor(tiny, max_rows=64)
    with CountingUNet(tiny.unet) as counted:
        result = editor.edit(
            editor.synthesise(["a cat"], [3], dataclasses.replace(SMALL, steps=50)),
            [["a dog", "snow"]],
        )
    assert counted.rows == result.unet_rows == 100 + 1 + 99 * 2


def test_no_guidance_needs_no_unconditional_row(tiny, photos):
    editor = Editor(tiny)
    parameters = dataclasses.replace(SMALL, guidance_scale=1.0)
    inversion = editor.invert(photos[:1], ["the cat"], parameters)
    assert editor.edit(inversion, [["a dog"]]).unet_rows == 8 + 10


def test_sources_without_edits_cost_only_themselves(tiny, photos):
    editor = Editor(tiny)
    inversion = editor.invert(photos[:2], None, SMALL)
    result = editor.edit(inversion, [[], []])
    assert result.edits == ((), ())
    assert result.unet_rows == 0
    empty = editor.edit(editor.invert([], [], SMALL), [])
    assert (empty.edits, empty.source_images, empty.unet_rows) == ((), (), 0)


def test_replacing_nothing_is_plain_ddim_sampling(tiny):
    """Against diffusers' own pipeline and scheduler, by fraction 0 and by an empty layer rule."""
    pipe = StableDiffusionPipeline(
        vae=tiny.vae,
        text_encoder=tiny.text_encoder,
        tokenizer=tiny.tokenizer,
        unet=tiny.unet,
        scheduler=DDIMScheduler.from_config(tiny.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        "a red dog",
        latents=seeded_noise(5, (1, 4, 8, 8)),
        num_inference_steps=10,
        guidance_scale=7.5,
        output_type="latent",
        height=64,
        width=64,
    ).images[0]
    editor = Editor(tiny)
    for change in ({"replaced_fraction": 0.0}, {"layers": LayersByTokens(0)}):
        sources = editor.synthesise(["a cat"], [5], dataclasses.replace(SMALL, **change))
        latent = editor.edit(sources, [["a red dog"]]).edits[0][0].latent
        assert (latent - expected).norm() / expected.norm() < 1e-4


def test_inversion_then_unguided_denoising_returns_the_latent(tiny, photos):
    """To DDIM's own error, which is first order in the step: within 0.2 of the latent's norm at 200
    steps on this random network, and falling with the number of steps."""
    editor = Editor(tiny)
    prompts = ["the cat", "", "snow"]

    def inverted(steps: int) -> Inversion:
        parameters = dataclasses.replace(
            SMALL, steps=steps, guidance_scale=1.0, layers=LayersByTokens(0)
        )
        return editor.invert(photos, prompts, parameters)

    def relative_errors(inversion: Inversion, targets: list[str]) -> torch.Tensor:
        result = editor.edit(inversion, [[target] for target in targets])
        final = torch.stack([edits[0].latent for edits in result.edits])
        start = inversion.trajectory[:, 0]
        return (final - start).flatten(1).norm(dim=1) / start.flatten(1).norm(dim=1)

    of_200_steps = inverted(200)
    fine = relative_errors(of_200_steps, prompts)
    assert (fine < 0.2).all()
    assert (fine < 0.6 * relative_errors(inverted(50), prompts)).all()
    assert (fine < 0.6 * relative_errors(of_200_steps, ["a red car"] * 3)).all(), (
        "another prompt must not"
    )


def test_selected_inversions_give_the_same_edits(tiny, photos):
    editor = Editor(tiny)
    inversion = editor.invert(photos, ["the cat", "", "a dog"], SMALL)
    picked = inversion.select([2, 0])
    assert picked.source_prompts == ("a dog", "the cat")
    assert picked.unet_rows == 20
    a = editor.edit(picked, [["snow"], ["snow"]])
    b = editor.edit(inversion, [["snow"], [], ["snow"]])
    for one, other in ((a.edits[0][0], b.edits[2][0]), (a.edits[1][0], b.edits[0][0])):
        assert (one.latent - other.latent).norm() / other.latent.norm() < 1e-4


def test_two_models_do_not_disturb_each_other(tiny, tmp_path, photos):
    other = load_checkpoint(build_tiny_checkpoint(tmp_path / "other", seed=1), device="cpu")
    assert other.fingerprint != tiny.fingerprint
    editors = Editor(tiny), Editor(other)
    inversions = [e.invert(photos[:1], ["the cat"], SMALL) for e in editors]
    before = [e.edit(i, [["a dog"]]) for e, i in zip(editors, inversions, strict=True)]
    nested = []

    def edit_with_the_other(_module, _inputs) -> None:
        if not nested:
            nested.append(None)
            nested[0] = editors[1].edit(inversions[1], [["a dog"]])

    handle = tiny.unet.conv_in.register_forward_pre_hook(edit_with_the_other)
    try:
        again = editors[0].edit(inversions[0], [["a dog"]])
    finally:
        handle.remove()
    assert torch.equal(again.edits[0][0].latent, before[0].edits[0][0].latent)
    assert torch.equal(nested[0].edits[0][0].latent, before[1].edits[0][0].latent)


def test_the_checkpoint_s_processors_are_left_alone(tiny, photos):
    own = dict(tiny.unet.attn_processors)
    seen = []
    handle = tiny.unet.conv_out.register_forward_pre_hook(
        lambda _module, _inputs: seen.append(dict(tiny.unet.attn_processors))
    )
    try:
        editor = Editor(tiny)
        editor.edit(editor.invert(photos[:1], None, SMALL), [["a dog"]])
    finally:
        handle.remove()
    assert seen
    assert all(each == own for each in seen)


def test_out_of_memory_halves_the_rows_and_changes_nothing(tiny, photos):
    editor = Editor(tiny, max_rows=64)
    targets = [["a dog", "snow"], ["a red cat"], ["a car", "a dog"]]
    expected = editor.edit(editor.invert(photos, None, SMALL), targets)

    def refuse_more_than_three(_module, inputs) -> None:
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory (on purpose)")

    # Deep inside, so that some layers have already recorded their maps when it happens.
    handle = tiny.unet.up_blocks[2].resnets[0].register_forward_pre_hook(refuse_more_than_three)
    small = Editor(tiny, max_rows=64)
    try:
        inversion = small.invert(photos, None, SMALL)
        result = small.edit(inversion, targets)
    finally:
        handle.remove()
    assert (inversion.unet_rows, result.unet_rows) == (30, 24 + 3 + 95)
    for wanted, got in zip(expected.edits, result.edits, strict=True):
        for one, other in zip(wanted, got, strict=True):
            assert (one.latent - other.latent).norm() / one.latent.norm() < 1e-4
    with CountingUNet(tiny.unet) as counted:
        small.edit(inversion, targets)
    assert counted.largest <= 3, "the limit stays down"


def test_out_of_memory_in_the_autoencoder_loses_no_image(tiny, photos):
    def refuse_more_than_one(_module, _inputs, output) -> None:
        if len(output) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory (on purpose)")

    editor = Editor(tiny)
    inversion = editor.invert(photos, None, SMALL)
    expected = editor.edit(inversion, [["a dog"]] * 3)
    handle = tiny.vae.decoder.register_forward_hook(refuse_more_than_one)
    try:
        result = Editor(tiny).edit(inversion, [["a dog"]] * 3)
    finally:
        handle.remove()
    assert all(edits[0].is_finite for edits in result.edits)
    for one, other in zip(expected.edits, result.edits, strict=True):
        apart = np.asarray(one[0].image, int) - np.asarray(other[0].image, int)
        assert np.abs(apart).max() <= 1


def test_a_row_that_never_fits_is_an_error_not_a_loop(tiny, photos):
    def refuse(_module, _inputs) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory (on purpose)")

    handle = tiny.unet.conv_in.register_forward_pre_hook(refuse)
    try:
        with pytest.raises(RowsOutOfMemoryError, match="one row alone"):
            Editor(tiny, max_rows=8).invert(photos, None, SMALL)
    finally:
        handle.remove()


def test_a_latent_that_is_not_finite_is_marked_and_spares_its_neighbours(tiny, photos):
    editor = Editor(tiny)
    inversion = editor.invert(photos[:2], None, SMALL)
    trajectory = inversion.trajectory.clone()
    trajectory[0] = float("nan")
    inversion = dataclasses.replace(inversion, trajectory=trajectory)
    result = editor.edit(inversion, [["a dog"], ["a dog"]])
    assert [edits[0].is_finite for edits in result.edits] == [False, True]
    alone = editor.edit(inversion.select([1]), [["a dog"]]).edits[0][0].latent
    neighbour = result.edits[1][0].latent
    assert (neighbour - alone).norm() / alone.norm() < 1e-4


def test_pixels_that_are_not_finite_are_marked_though_the_latent_is(tiny_folder, photos):
    """As where an autoencoder overflows in half precision."""
    checkpoint = load_checkpoint(tiny_folder, device="cpu")
    with torch.no_grad():
        checkpoint.vae.decoder.conv_out.bias[0] = float("inf")
    editor = Editor(checkpoint)
    edit = editor.edit(editor.invert(photos[:1], None, SMALL), [["a dog"]]).edits[0][0]
    assert edit.latent.isfinite().all()
    assert not edit.is_finite


def test_half_precision_keeps_latents_in_float32(tiny_folder, photos):
    checkpoint = load_checkpoint(tiny_folder, device="cpu", dtype="bfloat16")
    editor = Editor(checkpoint)
    inversion = editor.invert(photos[:1], None, SMALL)
    edit = editor.edit(inversion, [["a dog"]]).edits[0][0]
    assert inversion.trajectory.dtype == edit.latent.dtype == torch.float32
    assert edit.is_finite


def test_sizes_other_than_the_native_one(tiny, photos):
    """Not square, and not a multiple of the UNet's overall factor of 64."""
    editor = Editor(tiny)
    parameters = dataclasses.replace(SMALL, steps=4, width_px=104, height_px=72)
    result = editor.edit(editor.invert(photos[:1], None, parameters), [["a dog"]])
    assert result.edits[0][0].image.size == (104, 72)
    assert result.edits[0][0].latent.shape == (4, 9, 13)


def test_arguments_that_do_not_fit_each_other(tiny, photos):
    editor = Editor(tiny)
    inversion = editor.invert(photos[:2], None, SMALL)
    with pytest.raises(
        ParameterError, match="as many lists of target prompts as sources, got 1 and 2"
    ):
        editor.edit(inversion, [["a dog"]])
    with pytest.raises(ParameterError, match="as many source prompts as images, got 1 and 2"):
        editor.invert(photos[:2], ["one prompt"], SMALL)
    with pytest.raises(ParameterError, match="list of prompts per source"):
        editor.edit(inversion, ["a dog", "a cat"])
    with pytest.raises(ParameterError, match="at most 16"):
        editor.edit(
            inversion, [["a"], ["b"]], dataclasses.replace(SMALL, layers=LayersByRange(4, 17))
        )
    with pytest.raises(PromptError, match="must be text"):
        editor.edit(inversion, [[None], ["a"]])
    with pytest.raises(ParameterError, match="max_rows"):
        Editor(tiny, max_rows=0)


# --- one test per defect of the authors' code --------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 25, 50])
def test_any_step_count_fits_its_trajectory(tiny, photos, steps):
    editor = Editor(tiny)
    parameters = dataclasses.replace(SMALL, steps=steps)
    inversion = editor.invert(photos[:1], None, parameters)
    assert inversion.trajectory.shape[1] == steps + 1
    result = editor.edit(inversion, [["a dog"]])
    replaced = int(steps * 0.8 + 1e-9)
    assert result.unet_rows == replaced + 2 * steps
    with pytest.raises(ParameterError, match="steps must be the sources' own"):
        editor.edit(inversion, [["a dog"]], dataclasses.replace(parameters, steps=steps + 1))


def test_several_targets_of_one_source_in_one_call(tiny, photos):
    editor = Editor(tiny)
    inversion = editor.invert(photos[:1], ["the cat"], SMALL)
    edits = editor.edit(inversion, [["a dog", "snow", "a red car"]]).edits[0]
    assert [edit.target_prompt for edit in edits] == ["a dog", "snow", "a red car"]
    assert not torch.allclose(edits[0].latent, edits[1].latent)


def test_the_scaling_factor_is_the_checkpoint_s(tiny, photos):
    """The tiny autoencoder's is 5.0: a literal 0.18215 would be off by a factor of 27."""
    assert tiny.vae.config.scaling_factor == 5.0
    editor = Editor(tiny)
    inversion = editor.invert(photos[:1], None, SMALL)
    pixels = torch.from_numpy(np.array(inversion.images[0])).permute(2, 0, 1)[None]
    with torch.no_grad():
        mean = tiny.vae.encode(pixels.float() / 127.5 - 1).latent_dist.mode()
    assert torch.allclose(inversion.trajectory[0, 0], 5.0 * mean[0], atol=1e-5)


def test_an_image_that_is_not_square_is_not_squashed(tiny):
    """A circle in a wide image stays round."""
    wide = Image.new("RGB", (200, 100), "white")
    wide.paste(Image.new("RGB", (40, 40), "black"), (80, 30))
    fitted = Editor(tiny).invert([wide], None, SMALL).images[0]
    dark = fitted.convert("L").point(lambda value: 255 if value < 128 else 0).getbbox()
    assert abs((dark[2] - dark[0]) - (dark[3] - dark[1])) <= 1


def test_a_prompt_past_the_window_is_cut_and_said_so(tiny, photos, caplog):
    long_prompt = "red " * 80 + "snow"
    editor = Editor(tiny)
    inversion = editor.invert(photos[:1], [long_prompt], SMALL)
    edit = editor.edit(inversion, [[long_prompt, "red"]]).edits[0]
    assert edit[0].truncated_prompt.endswith("snow")
    assert inversion.truncated_prompts[0].endswith("snow")
    assert edit[1].truncated_prompt == ""
    assert "exceeds 77 tokens" in caplog.text


def test_the_device_is_the_checkpoint_s(tiny_folder):
    """Weights and noise are on the caller's device; the meta device shows it on any machine."""
    checkpoint = load_checkpoint(tiny_folder, device="meta")
    assert {p.device.type for p in checkpoint.unet.parameters()} == {"meta"}
    assert Editor(checkpoint).synthesise(["a cat"], [1], SMALL).noise.device.type == "meta"

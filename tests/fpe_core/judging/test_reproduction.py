"""How well a source comes back: each loss by itself, and what measuring it costs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from PIL import Image

from fpe_core import Checkpoint, Editor, EditParameters, Inversion, ParameterError, psnr_db
from fpe_core.judging.reproduction import (
    Reproduction,
    ReproductionLimits,
    measure_autoencoder,
    measure_reproduction,
)
from fpe_core.judging.rules import RejectReason
from fpe_core.schedule import ddim_schedule

SMALL = EditParameters(steps=3, guidance_scale=2.0, width_px=64, height_px=64)
PROMPTS = ["a cat", "", "a dog"]


@pytest.fixture
def editor(tiny: Checkpoint) -> Editor:
    return Editor(tiny)


@pytest.fixture
def inversion(editor: Editor, photos: list[Image.Image]) -> Inversion:
    return editor.invert(photos, PROMPTS, SMALL)


def test_both_losses_are_measured_against_what_the_loss_before_left(
    editor: Editor, inversion: Inversion
) -> None:
    found, unet_rows = measure_reproduction(editor, inversion)
    assert unet_rows == len(PROMPTS) * SMALL.steps
    decoded = editor.decode(inversion.trajectory[:, 0], SMALL)
    assert [each.autoencoder_psnr_db for each in found] == psnr_db(inversion.images, decoded)
    z = inversion.start
    for k in reversed(range(SMALL.steps)):
        as_if = dataclasses.replace(
            inversion, trajectory=z[:, None].expand(-1, SMALL.steps + 1, -1, -1, -1)
        )
        z = editor.step_back(as_if, k)
    expected = psnr_db(decoded, editor.decode(z, SMALL))
    assert [each.inversion_psnr_db for each in found] == pytest.approx(expected, abs=0.05)


def test_the_autoencoder_alone_costs_no_row(editor: Editor, inversion: Inversion) -> None:
    calls: list[object] = []
    hook = editor.checkpoint.unet.conv_in.register_forward_hook(lambda *_: calls.append(None))
    alone = measure_autoencoder(editor, inversion.images, inversion.parameters)
    hook.remove()
    both, _ = measure_reproduction(editor, inversion)
    assert calls == []
    assert [each.inversion_psnr_db for each in alone] == [None] * len(PROMPTS)
    assert [a.autoencoder_psnr_db for a in alone] == [b.autoencoder_psnr_db for b in both]


def test_a_latent_that_decodes_to_its_source_has_lost_nothing(
    editor: Editor, inversion: Inversion
) -> None:
    decoded = editor.decode(inversion.trajectory[:, 0], SMALL)
    perfect = dataclasses.replace(inversion, images=decoded)
    found, _ = measure_reproduction(editor, perfect)
    assert [each.autoencoder_psnr_db for each in found] == [math.inf] * len(PROMPTS)


def test_one_step_inverted_and_stepped_back_needs_the_same_noise(
    editor: Editor, inversion: Inversion
) -> None:
    """What a step back differs by is what the UNet says otherwise at z_(k+1) than at z_k."""
    schedule = ddim_schedule(editor.checkpoint.scheduler_config, SMALL.steps)
    back = editor.step_back(inversion, 1)
    z_next = inversion.trajectory[:, 2]
    noise = schedule.implied_epsilon(back, z_next, 1)
    assert torch.allclose(schedule.sample_step(z_next, noise, 1), back, atol=1e-4)
    for k in (-1, SMALL.steps):
        with pytest.raises(ParameterError, match="k must be 0 to 2"):
            editor.step_back(inversion, k)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_two_latents_tell_the_noise_between_them(prediction_type: str) -> None:
    schedule = ddim_schedule({"prediction_type": prediction_type}, 10)
    generator = torch.Generator().manual_seed(0)
    z, output = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    z_next = schedule.invert_step(z, output, 4)
    noise = schedule.implied_epsilon(z, z_next, 4)
    signal, spread = schedule.alphas_bar[4] ** 0.5, (1 - schedule.alphas_bar[4]) ** 0.5
    expected = output if prediction_type == "epsilon" else signal * output + spread * z
    assert torch.allclose(noise, expected)


def test_limits_are_allowed_values_and_name_what_is_below() -> None:
    limits = ReproductionLimits(20.0, 30.0)
    assert limits.verdict(Reproduction(20.0, 30.0)).is_accepted
    assert limits.verdict(Reproduction(math.inf, math.inf)).is_accepted
    assert limits.verdict(Reproduction(None, None)).is_accepted
    verdict = limits.verdict(Reproduction(19.94, 40.0))
    assert verdict.reason == RejectReason.SOURCE_NOT_REPRODUCED
    assert "autoencoder 19.9 dB, less than 20" in verdict.message
    assert "inversion 40.0 dB" in verdict.message
    both = limits.verdict(Reproduction(5.0, 6.0)).message
    assert "autoencoder 5.0 dB, less than 20; inversion 6.0 dB, less than 30" in both
    assert not limits.verdict(Reproduction(math.nan, 40.0)).is_accepted


def test_a_limit_that_is_not_set_is_not_looked_at() -> None:
    assert not ReproductionLimits().is_on
    assert ReproductionLimits(0.0).is_on
    assert (
        ReproductionLimits(inversion_psnr_db_at_least=30.0).verdict(Reproduction(1.0)).is_accepted
    )

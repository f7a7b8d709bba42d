from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from fpe_core import CheckpointError, ParameterError
from fpe_core.noise_levels import check_schedule, timesteps_of, training_levels
from fpe_core.schedule import ddim_schedule, seeded_noise

SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


def test_fifty_steps_are_the_paper_s_timesteps():
    schedule = ddim_schedule(SD, 50)
    assert schedule.timesteps[0] == 1
    assert schedule.timesteps[-2:] == (961, 981)
    assert len(schedule.timesteps) == 50
    assert len(schedule.alphas_bar) == 51


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_both_directions_are_diffusers_ddim(prediction_type, steps):
    config = {
        **SD,
        "prediction_type": prediction_type,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    schedule = ddim_schedule(config, steps)
    sampler = DDIMScheduler(**config)
    sampler.set_timesteps(steps)
    assert tuple(reversed(sampler.timesteps.tolist())) == schedule.timesteps
    generator = torch.Generator().manual_seed(0)
    for k, timestep in enumerate(schedule.timesteps):
        z = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
        output = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
        expected = sampler.step(output, timestep, z).prev_sample
        assert torch.allclose(schedule.sample_step(z, output, k), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "betas",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"trained_betas": [0.001 + 0.00002 * step for step in range(500)]},
    ],
)
def test_zero_terminal_snr_is_diffusers_own(betas):
    """diffusers 0.42.1, schedulers/scheduling_ddim.py: rescale_zero_terminal_snr."""
    config = {**SD, **betas, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    scheduler = DDIMScheduler(**config)
    levels = training_levels(config)
    assert len(levels) == len(scheduler.alphas_cumprod)
    assert levels == pytest.approx(scheduler.alphas_cumprod.double().numpy(), abs=1e-6)
    assert levels[-1] == 0
    schedule = ddim_schedule(config, len(levels) - 1)
    z, output = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64).unbind()
    for k in (len(levels) - 2, 100):  # the first begins at pure noise
        assert torch.isfinite(schedule.sample_step(z, output, k)).all()
        assert torch.isfinite(schedule.invert_step(z, output, k)).all()


def test_pure_noise_cannot_be_sampled_by_what_predicts_epsilon():
    config = {**SD, "rescale_betas_zero_snr": True}
    assert ddim_schedule(config, 50).timesteps[-1] == 981
    for steps in (500, 999):
        with pytest.raises(ParameterError, match=r"pure noise"):
            ddim_schedule(config, steps)


def test_what_a_config_leaves_out_is_diffusers_default():
    scheduler = DDIMScheduler()
    expected = scheduler.alphas_cumprod.double().numpy()
    assert training_levels({}) == pytest.approx(expected, abs=1e-6)


def test_inversion_is_diffusers_inverse_ddim():
    schedule = ddim_schedule(SD, 50)
    inverse = DDIMInverseScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    inverse.set_timesteps(50)
    z, output = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64).unbind()
    for k in range(1, 50):
        expected = inverse.step(output, schedule.timesteps[k], z).prev_sample
        assert torch.allclose(schedule.invert_step(z, output, k), expected, rtol=1e-4, atol=1e-5)


KINDS = [
    (prediction, spacing, is_zero)
    for prediction, spacing, is_zero in itertools.product(
        ("epsilon", "v_prediction"), ("leading", "trailing"), (False, True)
    )
    if (prediction, spacing, is_zero) != ("epsilon", "trailing", True)  # refused: see below
]


def config_of(prediction: str, spacing: str, is_zero: bool) -> dict[str, Any]:
    return {
        **SD,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "rescale_betas_zero_snr": is_zero,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def float64_levels(is_zero: bool) -> torch.Tensor:
    """diffusers' noise levels, as its scheduler computes them, from betas in float64."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    betas = roots**2
    return torch.cumprod(1 - (rescale_zero_terminal_snr(betas) if is_zero else betas), 0)


@pytest.mark.parametrize(("prediction", "spacing", "is_zero"), KINDS)
@pytest.mark.parametrize("steps", [1, 5, 10, 50, 100])
def test_sampling_is_diffusers_ddim_in_float64(
    prediction: str, spacing: str, is_zero: bool, steps: int
) -> None:
    """All steps one after the other, so that errors add up; noise at most 1e-10 of the latent's."""
    config = config_of(prediction, spacing, is_zero)
    theirs = DDIMScheduler(**config)
    theirs.alphas_cumprod = float64_levels(is_zero)
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(steps)
    schedule = ddim_schedule(config, steps)
    assert tuple(reversed(theirs.timesteps.tolist())) == schedule.timesteps
    generator = torch.Generator().manual_seed(steps)
    ours = expected = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    for k in reversed(range(steps)):
        output = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
        ours = schedule.sample_step(ours, output, k)
        expected = theirs.step(output, schedule.timesteps[k], expected).prev_sample
        assert ours.isfinite().all()
        assert float((ours - expected).norm() / expected.norm()) <= 1e-10


@pytest.mark.parametrize(("prediction", "spacing", "is_zero"), KINDS)
@pytest.mark.parametrize("steps", [7, 30, 50])
def test_inversion_is_the_equation(
    prediction: str, spacing: str, is_zero: bool, steps: int
) -> None:
    """z at the next level is sqrt(a') x0 + sqrt(1 - a') eps, of what the output stands for at the
    level where z is: that of the step before, whether or not the steps divide the training's."""
    config = config_of(prediction, spacing, is_zero)
    levels, schedule = float64_levels(is_zero), ddim_schedule(config, steps)
    z, output = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64).unbind()
    a = levels[0]
    for k, t in enumerate(schedule.timesteps):
        if prediction == "epsilon":
            clean, noise = (z - (1 - a).sqrt() * output) / a.sqrt(), output
        else:
            clean = a.sqrt() * z - (1 - a).sqrt() * output
            noise = a.sqrt() * output + (1 - a).sqrt() * z
        a = levels[t]
        expected = a.sqrt() * clean + (1 - a).sqrt() * noise
        moved = schedule.invert_step(z, output, k)
        assert float((moved - expected).norm() / expected.norm()) <= 1e-10
        z, output = moved, torch.randn(1, 4, 8, 8, dtype=torch.float64)
    if is_zero and spacing == "trailing":
        assert schedule.alphas_bar[-1] == 0
        assert torch.allclose(moved, noise, atol=1e-12), "nothing of the picture is left"


@pytest.mark.parametrize(("prediction", "spacing", "is_zero"), KINDS)
@pytest.mark.parametrize("steps", [5, 50])
def test_inversion_is_diffusers_inverse_ddim_in_float64(
    prediction: str, spacing: str, is_zero: bool, steps: int
) -> None:
    """Where it is right: with numbers of steps that divide the training's, and the config's
    clip_sample and set_alpha_to_one, not its own (findings/ has a script for the others)."""
    config = config_of(prediction, spacing, is_zero)
    theirs = DDIMInverseScheduler(**config)
    theirs.alphas_cumprod = float64_levels(is_zero)
    theirs.initial_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(steps)
    schedule = ddim_schedule(config, steps)
    assert tuple(theirs.timesteps.tolist()) == schedule.timesteps
    ours = expected = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    for k, t in enumerate(schedule.timesteps):
        output = torch.randn(1, 4, 8, 8, dtype=torch.float64)
        ours = schedule.invert_step(ours, output, k)
        expected = theirs.step(output, t, expected).prev_sample
        assert float((ours - expected).norm() / expected.norm()) <= 1e-10


def test_trailing_timesteps_are_diffusers_for_every_number_of_steps() -> None:
    """diffusers 0.42.1; for some numbers, 61 for one, it has one more, -1, at the end."""
    config = config_of("v_prediction", "trailing", True)
    theirs, longer = DDIMScheduler(**config), []
    for steps in range(1, 667):
        theirs.set_timesteps(steps)
        found = theirs.timesteps.tolist()
        if len(found) > steps:
            assert found.pop() == -1
            longer.append(steps)
        ours = timesteps_of(config, steps)
        assert list(reversed(found)) == list(ours)
        assert ours[0] >= 1
        assert ours[-1] == 999
        assert all(before < after for before, after in itertools.pairwise(ours))
    assert 61 in longer
    for steps in (667, 999):
        with pytest.raises(ParameterError, match=r"at most 666 .*trailing spacing"):
            timesteps_of(config, steps)


@pytest.mark.parametrize("spacing", [None, "leading", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
def test_other_spacings_and_offsets_are_the_paper_s_grid(spacing: str | None, offset: int) -> None:
    """A config that was saved for another sampler keeps the results it has had."""
    config = {**SD, "timestep_spacing": spacing, "steps_offset": offset}
    assert ddim_schedule(config, 50) == ddim_schedule(SD, 50)


def test_a_spacing_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CheckpointError, match="'karras' is not supported; allowed: leading"):
        check_schedule({**SD, "timestep_spacing": "karras"})


def test_pure_noise_and_epsilon_are_refused_with_the_reason() -> None:
    config = config_of("epsilon", "trailing", True)
    with pytest.raises(CheckpointError, match=r"pure noise .*predicts epsilon.*prediction_type"):
        check_schedule(config)
    check_schedule({**config, "prediction_type": "v_prediction"})
    check_schedule({**config, "timestep_spacing": "leading"})


def test_ancestral_steps_from_pure_noise_are_their_limits() -> None:
    """At an infinite sigma all that is left of a latent is what the UNet sees in it."""
    config = config_of("v_prediction", "trailing", True)
    schedule = ddim_schedule(config, 10)
    z, output, noise = torch.randn(3, 1, 4, 8, 8, dtype=torch.float64).unbind()
    a = schedule.alphas_bar[9]
    mean = schedule.ancestral_mean(z, output, 9)
    assert torch.allclose(mean, -(a**0.5) * output, atol=1e-12)
    stepped = schedule.euler_ancestral_step(z, output, 9, noise)
    assert torch.allclose(stepped, -(a**0.5) * output + (1 - a) ** 0.5 * noise, atol=1e-12)
    almost = np.array(schedule.alphas_bar)
    almost[-1] = 1e-14
    near = type(schedule)(schedule.timesteps, tuple(almost.tolist()), "v_prediction")
    assert torch.allclose(near.euler_ancestral_step(z, output, 9, noise), stepped, atol=1e-5)


def test_the_two_directions_undo_each_other_for_the_same_noise():
    schedule = ddim_schedule(SD, 20)
    z, noise = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64).unbind()
    for k in range(20):
        there = schedule.invert_step(z, noise, k)
        assert torch.allclose(schedule.sample_step(there, noise, k), z, atol=1e-12)


def test_what_the_schedule_cannot_do():
    with pytest.raises(ParameterError, match="at most 999"):
        ddim_schedule(SD, 1000)
    with pytest.raises(CheckpointError, match="sample"):
        ddim_schedule({**SD, "prediction_type": "sample"}, 10)
    with pytest.raises(CheckpointError, match="squaredcos"):
        ddim_schedule({**SD, "beta_schedule": "squaredcos_cap_v2"}, 10)


def test_noise_belongs_to_its_seed():
    assert torch.equal(seeded_noise(1, (4, 8, 8)), seeded_noise(1, (4, 8, 8)))
    assert not torch.equal(seeded_noise(1, (4, 8, 8)), seeded_noise(2, (4, 8, 8)))
    assert seeded_noise(-1, (4,)).isfinite().all()
    assert seeded_noise(2**63 + 5, (4,)).isfinite().all()

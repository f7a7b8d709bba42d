from __future__ import annotations

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from fpe_core import CheckpointError, ParameterError
from fpe_core.noise_levels import training_levels
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
        with pytest.raises(ParameterError, match="pure noise"):
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

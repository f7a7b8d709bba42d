"""DDIM in both directions over one grid of timesteps (Song et al. 2021, arXiv 2010.02502, eq. 12).

Step k = 0 .. T-1 belongs to timestep t_k = k * (N // T) + 1 (leading spacing, offset 1), or, for
checkpoints with trailing spacing, to N - (T - 1 - k) * N / T - 1, rounded. A trajectory has T + 1
latents: z_0 is clean, z_(k+1) is the latent at noise level t_k. Inversion walks k upwards, sampling
downwards; both move between the same two noise levels at the same k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpe_core.noise_levels import prediction_type_of, timesteps_of, training_levels


@dataclass(frozen=True)
class DDIMSchedule:
    """Timesteps and noise levels of one run of `steps` steps.

    Attributes:
        timesteps: t_k, ascending, length T.
        alphas_bar: cumulative alpha of z_0 .. z_T, length T + 1, float64; the first is the training
            schedule's own first entry (`set_alpha_to_one` False), not 1.
        prediction_type: what the UNet's output is, "epsilon" or "v_prediction".
    """

    timesteps: tuple[int, ...]
    alphas_bar: tuple[float, ...]
    prediction_type: str

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def invert_step(self, z_k: Tensor, model_output: Tensor, k: int) -> Tensor:
        """z_k and the UNet's output at (z_k, t_k) to z_(k+1)."""
        return self._move(z_k, model_output, self.alphas_bar[k], self.alphas_bar[k + 1])

    def sample_step(self, z_next: Tensor, model_output: Tensor, k: int) -> Tensor:
        """z_(k+1) and the UNet's output at (z_(k+1), t_k) to z_k."""
        return self._move(z_next, model_output, self.alphas_bar[k + 1], self.alphas_bar[k])

    def ancestral_mean(self, z_next: Tensor, model_output: Tensor, k: int) -> Tensor:
        """The mean of z_k given z_(k+1) and the UNet's output at (z_(k+1), t_k), with as much noise
        still to come as in DDPM (eq. 12 and 16 with eta 1)."""
        level_from, level_to = self.alphas_bar[k + 1], self.alphas_bar[k]
        clean, epsilon = self._taken_apart(z_next, model_output, level_from)
        variance = (1 - level_to) / (1 - level_from) * (1 - level_from / level_to)
        mean: Tensor = level_to**0.5 * clean + (1 - level_to - variance) ** 0.5 * epsilon
        return mean

    def euler_ancestral_step(
        self, z_next: Tensor, model_output: Tensor, k: int, noise: Tensor
    ) -> Tensor:
        """z_(k+1) to z_k by Euler's ancestral step, as InstructPix2Pix samples; at k 0 no noise is
        left.

        It is a step of x = z / sqrt(a) from sigma = sqrt((1 - a) / a) down to a part of the next
        sigma; the other part is new noise (k-diffusion's `sample_euler_ancestral`).
        """
        from_level, to_level = self.alphas_bar[k + 1], self.alphas_bar[k] if k else 1.0
        clean, epsilon = self._taken_apart(z_next, model_output, from_level)
        after = (1 - to_level) / to_level  # sigma squared
        drawn = after  # from pure noise (zero terminal SNR), where sigma is infinite
        if from_level > 0:
            before = (1 - from_level) / from_level
            drawn = after * (before - after) / before
        moved = clean + (after - drawn) ** 0.5 * epsilon + drawn**0.5 * noise
        scaled: Tensor = to_level**0.5 * moved
        return scaled

    def noise_of(self, z_k: Tensor, model_output: Tensor, k: int) -> Tensor:
        """The epsilon that the UNet's output stands for, at the level of z_k."""
        if self.prediction_type != "v_prediction":
            return model_output
        level = self.alphas_bar[k]
        noise: Tensor = level**0.5 * model_output + (1 - level) ** 0.5 * z_k
        return noise

    def _move(self, z: Tensor, model_output: Tensor, level_from: float, level_to: float) -> Tensor:
        clean, epsilon = self._taken_apart(z, model_output, level_from)
        moved: Tensor = level_to**0.5 * clean + (1 - level_to) ** 0.5 * epsilon
        return moved

    def _taken_apart(self, z: Tensor, model_output: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """(clean latent, noise) that the UNet sees in a latent."""
        signal, noise = level**0.5, (1 - level) ** 0.5
        if self.prediction_type == "v_prediction":  # Salimans & Ho 2022, arXiv 2202.00512, app. D
            return signal * z - noise * model_output, signal * model_output + noise * z
        return (z - noise * model_output) / signal, model_output


def ddim_schedule(scheduler_config: Mapping[str, Any], steps: int) -> DDIMSchedule:
    """The grid of `steps` DDIM steps on the noise schedule a checkpoint was trained with.

    Only what describes the training is read from the config (betas, their rescaling to zero
    terminal SNR, number of timesteps, prediction type), and trailing spacing; every other spacing
    is leading with offset 1, and the final alpha is the first of training. Coefficients are
    float64.

    Raises:
        ParameterError: more steps than training timesteps.
        CheckpointError: a beta schedule or prediction type that Stable Diffusion 1.x does not use.
    """
    levels = training_levels(scheduler_config)
    timesteps = timesteps_of(scheduler_config, steps)
    alphas_bar = (levels[0], *(levels[t] for t in timesteps))
    return DDIMSchedule(
        timesteps,
        tuple(float(level) for level in alphas_bar),
        prediction_type_of(scheduler_config),
    )


def seeded_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, float32 on the CPU, the same on every device for the same seed.

    One generator per source, so that noise does not depend on what a source is batched with.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed % 2**63)
    return torch.randn(shape, generator=generator, dtype=torch.float32)

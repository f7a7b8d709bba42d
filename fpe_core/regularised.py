"""Inversion with noise that is kept close to white (pix2pix-zero, arXiv 2302.03027, sec. 3.1).

At every step the predicted noise descends on two losses before it is used. One is the correlation
of each channel with itself, shifted over the rows and over the columns, squared, at every level of
a pyramid of averages; the other is the Kullback-Leibler divergence of all of its values from the
standard normal distribution. Both gradients are written out, so nothing here needs autograd.

How far a channel is shifted is drawn from a generator of the source's own pixels, so that an
inversion is the same in every batch and every run. A shift is at least 1: by 0 the noise would be
compared with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fpe_core.inversion import seed_of
from fpe_core.schedule import DDIMSchedule

_ROUNDS, _SHIFTS = 5, 5
"""Rounds of a step; in each, so many moves by the correlation, and then one by the divergence."""
_CORRELATION, _DIVERGENCE = 20.0, 20.0
_COARSEST = 8
"""The height at which the pyramid ends."""
_LEAST_VARIANCE = 1e-7


class NoiseRegularisation:
    """Steps of an inversion of S sources with noise that is regularised.

    What is computed for a source does not depend on the others.
    """

    def __init__(self, schedule: DDIMSchedule, images: Sequence[Image.Image], z_0: Tensor) -> None:
        """
        Args:
            images: as the model sees them; their pixels give the shifts.
            z_0: their latents, (S, C, h, w); S is at least 1.
        """
        self._schedule = schedule
        _, channels, height, width = z_0.shape
        shape = (schedule.steps, _ROUNDS * _SHIFTS, channels)
        drawn = [_shifts(seed_of(image), _heights(height, width), shape) for image in images]
        self._shifts = [torch.stack(level).to(z_0.device) for level in zip(*drawn, strict=True)]

    def invert_step(self, z_k: Tensor, model_output: Tensor, k: int) -> Tensor:
        """z_k and the UNet's output at (z_k, t_k) to z_(k+1), as `DDIMSchedule.invert_step`.

        With v-prediction the noise that the output stands for is regularised.
        """
        noise = self._schedule.noise_of(z_k, model_output, k)
        shifts = iter(range(_ROUNDS * _SHIFTS))
        for _ in range(_ROUNDS):
            for _ in range(_SHIFTS):
                number = next(shifts)
                own = [level[:, k, number] for level in self._shifts]
                noise = noise - _CORRELATION / _SHIFTS * correlation_gradient(noise, own)
            noise = noise - _DIVERGENCE * divergence_gradient(noise)
        return replace(self._schedule, prediction_type="epsilon").invert_step(z_k, noise, k)


def correlation_gradient(noise: Tensor, shifts: Sequence[Tensor]) -> Tensor:
    """The gradient of each source's correlation loss.

    The loss is the sum over channels, levels and the two directions of mean(x * shifted x)^2, where
    x is the noise of the level: that of the level before, averaged over 2 x 2.

    Args:
        noise: (S, C, h, w).
        shifts: of every level from the finest, (S, C), int64.

    Returns:
        (S, C, h, w).
    """
    levels = [noise]
    for _ in shifts[1:]:
        levels.append(functional.avg_pool2d(levels[-1], 2))
    gradient: Tensor | None = None
    for x, shift in zip(reversed(levels), reversed(shifts), strict=True):
        own = _gradient_along(x, shift, 2) + _gradient_along(x, shift, 3)
        gradient = own if gradient is None else own + _unpooled(gradient, x)
    assert gradient is not None
    return gradient


def divergence_gradient(noise: Tensor) -> Tensor:
    """The gradient of var + mean^2 - 1 - log(var + 1e-7) of each source's values, var unbiased."""
    axes, count = (1, 2, 3), noise[0].numel()
    mean = noise.mean(axes, keepdim=True)
    variance = noise.var(axes, keepdim=True)
    slope = 1 - 1 / (variance + _LEAST_VARIANCE)
    return slope * 2 / (count - 1) * (noise - mean) + 2 / count * mean


def _gradient_along(x: Tensor, shift: Tensor, axis: int) -> Tensor:
    there, back = _rolled(x, shift, axis), _rolled(x, -shift, axis)
    correlation = (x * there).mean((2, 3), keepdim=True)
    return 2 * correlation / (x.shape[2] * x.shape[3]) * (there + back)


def _rolled(x: Tensor, shift: Tensor, axis: int) -> Tensor:
    """As torch.roll, with a shift for each source and channel: (S, C), int64."""
    size = x.shape[axis]
    places = (torch.arange(size, device=x.device) - shift[..., None]) % size
    places = places.unsqueeze(-1 if axis == 2 else -2)
    return x.gather(axis, places.expand_as(x))


def _unpooled(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of a level with respect to the finer one, which may have an odd edge more."""
    wide = gradient.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    rest = (0, like.shape[3] - wide.shape[3], 0, like.shape[2] - wide.shape[2])
    return functional.pad(wide, rest)


def _heights(height: int, width: int) -> list[int]:
    """Of the levels, from the finest; it ends at `_COARSEST`, and where a column is left."""
    heights = [height]
    while heights[-1] > _COARSEST and width > 1:
        heights.append(heights[-1] // 2)
        width //= 2
    return heights


def _shifts(seed: int, heights: Sequence[int], shape: tuple[int, ...]) -> list[Tensor]:
    """Of one source, level by level: each 1 to height / 2 - 1, and 1 where that is no range."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return [torch.randint(1, max(2, each // 2), shape, generator=generator) for each in heights]

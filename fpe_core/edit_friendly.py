"""Edit-friendly inversion (Huberman-Spiegelglas et al., CVPR 2024, arXiv 2304.06140, alg. 1).

The latents of a source are its z_0 with noise, drawn anew for every level, and not each from the
one before. What a DDPM step from one to the next one leaves over is kept as the noise map of that
step; with the maps, sampling with the source's prompt gives the source back, and with another
prompt an edit of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fpe_core.schedule import DDIMSchedule
from fpe_core.unet.denoiser import Denoiser
from fpe_core.unet.rows import UNetRows


def invert_edit_friendly(
    denoiser: Denoiser,
    schedule: DDIMSchedule,
    z_0: Tensor,
    *,
    seeds: Sequence[int],
    prompts: Sequence[tuple[int, int]],
    guidance_scale: float,
    levels: int,
) -> tuple[Tensor, Tensor]:
    """The latents of S sources at K levels, and the noise maps of the steps between them.

    Map k is z_k - mean(z_(k+1)), in the paper sigma_k times its noise map; that of the last step,
    to z_0, is 0.

    Args:
        z_0: (S, C, h, w).
        seeds: of each source's noise.
        prompts: of each source, the indices of its own prompt and of the negative one. Where they
            are the same there is one row a level instead of two, and so at scale 1.
        levels: K.

    Returns:
        z_0 .. z_K, (S, K + 1, C, h, w), and the maps, (S, K, C, h, w).

    Raises:
        RowsOutOfMemoryError: a single row does not fit.
    """
    trajectory = _noised_at_each_level(schedule, z_0, seeds, levels)
    maps = torch.zeros_like(trajectory[:, :levels])
    are_guided = [own != negative and guidance_scale != 1.0 for own, negative in prompts]
    for guided in sorted(set(are_guided)):
        places = [place for place, each in enumerate(are_guided) if each == guided]
        owns, negatives = zip(*(prompts[place] for place in places), strict=True)
        rows = (
            UNetRows.guided(owns, negatives, guidance_scale, z_0.device)
            if guided
            else UNetRows.unguided(owns, z_0.device)
        )
        denoiser.prepare([rows])
        for k in range(1, levels):
            z_next = trajectory[places, k + 1]
            output = rows.guide(denoiser.evaluate(rows, z_next, schedule.timesteps[k]))
            mean = schedule.ancestral_mean(z_next, output, k)
            maps[places, k] = trajectory[places, k] - mean
    return trajectory, maps


def _noised_at_each_level(
    schedule: DDIMSchedule, z_0: Tensor, seeds: Sequence[int], levels: int
) -> Tensor:
    """z_0 .. z_K, with noise from the generator of each source's seed, level by level, so that it
    does not depend on K or on the other sources."""
    generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]
    latents = [z_0]
    for a in schedule.alphas_bar[1 : levels + 1]:
        drawn = [torch.randn(z_0.shape[1:], generator=each) for each in generators]
        noise = torch.stack(drawn).to(z_0) if drawn else z_0
        latents.append(a**0.5 * z_0 + (1 - a) ** 0.5 * noise)
    return torch.stack(latents, dim=1)

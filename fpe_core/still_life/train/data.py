"""The training data: scenes, rendered once, and their latents.

The latents are brought to zero mean and unit scale by changing the autoencoder's weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from fpe_core.still_life.render import as_pixels, render
from fpe_core.still_life.scene import Scene, sample_scene
from fpe_core.still_life.train import workers
from fpe_core.still_life.train.architecture import IMAGE_SIZE_PX

_PER_BATCH = 16
FIRST_TRAINING_SEED = 1_000_000
"""Seeds below this one are never trained on: they are for demonstrations, validation and tests."""


def training_scenes(count: int) -> list[Scene]:
    """The scenes of the first `count` training seeds."""
    return [sample_scene(FIRST_TRAINING_SEED + index) for index in range(count)]


def rendered(folder: Path, scenes: list[Scene]) -> NDArray[np.uint8]:
    """The scenes' images, (N, 128, 128, 3), mapped from a file, which is made if missing."""
    path = folder / f"images_{len(scenes)}.npy"
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        shape = (len(scenes), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
        images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        for index, scene in enumerate(scenes):
            images[index] = np.asarray(render(scene, IMAGE_SIZE_PX))
        images.flush()
        partial.replace(path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def encoded(
    autoencoder: AutoencoderKL, images: NDArray[np.uint8], folder: Path, device: torch.device
) -> torch.Tensor:
    """The images' latents at unit scale, (N, 4, 16, 16) float32, encoded now or read from disk.

    Afterwards the autoencoder yields latents of zero mean and one common deviation in each channel,
    and its config holds the `scaling_factor` that brings them to unit scale.
    """
    raw = _posterior_means(autoencoder.to(device).eval(), images, folder, device)
    mean, deviation = raw.mean(dim=(0, 2, 3)), raw.std(dim=(0, 2, 3))
    common = float(raw.std())
    centre_latents(autoencoder, mean.to(device), (common / deviation).to(device))
    autoencoder.register_to_config(scaling_factor=1.0 / common)
    return (raw - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)


@torch.no_grad()
def centre_latents(autoencoder: AutoencoderKL, mean: torch.Tensor, gain: torch.Tensor) -> None:
    """Makes the latent z become (z - mean) * gain, by channel, with the same decoded image.

    Works on the two 1x1 convolutions between the networks and the latent, so nothing else changes.
    """
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(mean)
    before.bias[:channels] = (before.bias[:channels] - mean) * gain
    before.weight[:channels] *= gain.view(-1, 1, 1, 1)
    before.bias[channels:] += 2.0 * torch.log(gain)
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(dim=1)
    after.weight /= gain.view(1, -1, 1, 1)


@torch.no_grad()
def _posterior_means(
    autoencoder: AutoencoderKL, images: NDArray[np.uint8], folder: Path, device: torch.device
) -> torch.Tensor:
    path, shares = folder / "latents.pt", workers.count()
    if not path.exists():
        mine = torch.cat(
            [
                autoencoder.encode(as_pixels(images[i : i + _PER_BATCH]).to(device))
                .latent_dist.mode()
                .cpu()
                for i in range(workers.rank() * _PER_BATCH, len(images), shares * _PER_BATCH)
            ]
        )
        torch.save(mine, folder / f"latents_{workers.rank()}.pt")
        workers.wait_for_all()
        if not workers.rank():
            parts = [torch.load(folder / f"latents_{n}.pt") for n in range(shares)]
            blocks = [part.split(_PER_BATCH) for part in parts]
            longest = max(len(part) for part in blocks)
            in_order = [part[n] for n in range(longest) for part in blocks if n < len(part)]
            torch.save(torch.cat(in_order), path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
        workers.wait_for_all()
    means: torch.Tensor = torch.load(path)
    return means

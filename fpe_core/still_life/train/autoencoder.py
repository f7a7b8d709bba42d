"""Trains the autoencoder in two stages.

`train_autoencoder` trains encoder and decoder, on crops around the object and then on whole images.
`train_decoder` then trains the decoder alone, on latents that no longer change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from numpy.typing import NDArray

from fpe_core.still_life.render import as_pixels, render
from fpe_core.still_life.scene import Scene, sample_scene
from fpe_core.still_life.train import workers
from fpe_core.still_life.train.architecture import IMAGE_SIZE_PX, LATENT_SIZE
from fpe_core.still_life.train.progress import Budget, Run

_PEAK_LR, _DECODER_PEAK_LR = 2e-3, 1e-3
_LATENT_PX = IMAGE_SIZE_PX // LATENT_SIZE
_CROP_PX, _CROPS_PER_STEP = 64, 12  # in each process
_WHOLE_PER_STEP = 3
_DECODER_IMAGES_PER_STEP = 4  # in each process
_WHOLE_AFTER = 0.55  # share of the budget; crops have other GroupNorm statistics
_EDGE_WEIGHT, _KL_WEIGHT = 0.5, 1e-5
_RECORD_EVERY_STEPS = 200


def train_autoencoder(
    autoencoder: AutoencoderKL,
    images: NDArray[np.uint8],
    scenes: list[Scene],
    *,
    folder: Path,
    budget: Budget,
    device: torch.device,
    seed: int = 0,
    lr_scale: float = 1.0,
) -> Run:
    """Trains in place on (N, 128, 128, 3) images and returns the finished run with its curve."""
    autoencoder.to(device).train()
    peak_lr = _PEAK_LR * lr_scale
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=peak_lr, weight_decay=1e-4)
    run = Run("autoencoder", folder, budget, optimizer, peak_lr, {"autoencoder": autoencoder})
    for step in run.steps():
        rng = np.random.default_rng((seed, step, workers.rank()))
        torch.manual_seed(int(rng.integers(2**31)))
        pixels = _batch(images, scenes, rng, whole=run.spent > _WHOLE_AFTER).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = autoencoder.encode(pixels).latent_dist
            decoded = autoencoder.decode(posterior.sample()).sample
        loss = reconstruction_loss(decoded.float(), pixels) + _KL_WEIGHT * _divergence(posterior)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        workers.average_gradients(autoencoder.parameters())
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        optimizer.step()
        if step % _RECORD_EVERY_STEPS == 0 and not workers.rank():
            run.record(
                loss=float(loss.detach()), psnr_db=reconstruction_psnr_db(autoencoder, range(16))
            )
    autoencoder.eval()
    return run


@torch.no_grad()
def reconstruction_psnr_db(autoencoder: AutoencoderKL, seeds: Sequence[int]) -> float:
    """Mean PSNR of the decoded posterior means of the seeds' scenes, whole images, in float32."""
    values = []
    for seed in seeds:
        pixels = as_pixels(np.asarray(render(sample_scene(seed), IMAGE_SIZE_PX))[None])
        pixels = pixels.to(autoencoder.device)
        decoded = autoencoder.decode(autoencoder.encode(pixels).latent_dist.mode()).sample
        error = torch.mean((decoded.clamp(-1.0, 1.0) - pixels) ** 2) / 4.0
        values.append(-10.0 * math.log10(float(error)))
    return float(np.mean(values))


def reconstruction_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """L1 of the pixels and of their differences to the next ones, which keeps edges sharp."""
    error = decoded - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + _EDGE_WEIGHT * edges


def _batch(
    images: NDArray[np.uint8], scenes: list[Scene], rng: np.random.Generator, whole: bool
) -> torch.Tensor:
    chosen = rng.integers(len(scenes), size=_WHOLE_PER_STEP if whole else _CROPS_PER_STEP)
    if whole:
        picked = images[np.sort(chosen)]
    else:
        picked = np.stack([_crop(images[i], scenes[i], rng) for i in chosen])
    return as_pixels(picked)


def _crop(image: NDArray[np.uint8], scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square around a point of the object, moved to lie inside the image.

    It starts at a multiple of the latent's 8 px and is not mirrored, so that the strokes of a
    sketch are placed alike in every latent position and the decoder can learn to draw them.
    """
    corner = []
    for centre in (scene.centre_y, scene.centre_x):
        point = (centre + rng.uniform(-1.0, 1.0) * scene.radius) * IMAGE_SIZE_PX
        start = int(np.clip(point - _CROP_PX / 2, 0, IMAGE_SIZE_PX - _CROP_PX))
        corner.append(start // _LATENT_PX * _LATENT_PX)
    top, left = corner
    return image[top : top + _CROP_PX, left : left + _CROP_PX]


def _divergence(posterior: DiagonalGaussianDistribution) -> torch.Tensor:
    """KL divergence of the posterior from the unit Gaussian, averaged over its elements."""
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return 0.5 * torch.mean(mean**2 + logvar.exp() - 1.0 - logvar)


def train_decoder(
    autoencoder: AutoencoderKL,
    latents: torch.Tensor,
    images: NDArray[np.uint8],
    *,
    folder: Path,
    budget: Budget,
    device: torch.device,
    seed: int = 0,
    lr_scale: float = 1.0,
) -> Run:
    """Trains the decoder in place and returns the finished run.

    `latents` is (N, 4, 16, 16), those of the (N, 128, 128, 3) images, at unit scale.
    """
    autoencoder.to(device).train()
    parts = {"decoder": autoencoder.decoder, "post_quant_conv": autoencoder.post_quant_conv}
    weights = [weight for part in parts.values() for weight in part.parameters()]
    peak_lr = _DECODER_PEAK_LR * lr_scale
    optimizer = torch.optim.AdamW(weights, lr=peak_lr, weight_decay=1e-4)
    run = Run("decoder", folder, budget, optimizer, peak_lr, parts)
    for step in run.steps():
        rng = np.random.default_rng((seed, step, workers.rank()))
        chosen = np.sort(rng.integers(len(images), size=_DECODER_IMAGES_PER_STEP))
        pixels = as_pixels(images[chosen]).to(device)
        z = latents[torch.from_numpy(chosen)].to(device) / autoencoder.config.scaling_factor
        with torch.autocast(device.type, torch.bfloat16):
            decoded = autoencoder.decode(z).sample
        loss = reconstruction_loss(decoded.float(), pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        workers.average_gradients(weights)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % _RECORD_EVERY_STEPS == 0 and not workers.rank():
            psnr_db = reconstruction_psnr_db(autoencoder, range(16))
            run.record(loss=float(loss.detach()), psnr_db=psnr_db)
    autoencoder.eval()
    return run

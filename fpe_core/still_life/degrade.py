"""Degrades images slightly, as autoencoders, samplers and file formats do."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fpe_core.still_life.render import as_pixels

_JPEG_RATE, _BLUR_RATE, _GRAIN_RATE, _MOTTLE_RATE = 0.2, 0.5, 0.4, 0.4
_LEAST_JPEG_QUALITY, _BEST_JPEG_QUALITY = 40, 95
_STRONGEST_GRAIN, _STRONGEST_MOTTLE = 0.10, 0.10  # deviations, where an image spans -1..1
_MOTTLE_ACROSS = 8


def degrade(images: NDArray[np.uint8], rng: np.random.Generator) -> torch.Tensor:
    """(B, H, W, 3) bytes to (B, 3, H, W) in -1..1, each randomly compressed, blurred or noisy.

    What an image shows, and where, does not change.
    """
    worn = [_compress(image, rng) if rng.random() < _JPEG_RATE else image for image in images]
    pixels = as_pixels(np.stack(worn))
    noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for rate, change in (
        (_BLUR_RATE, _blur),
        (_GRAIN_RATE, _grain),
        (_MOTTLE_RATE, _mottle),
    ):
        some = torch.from_numpy(np.flatnonzero(rng.random(len(images)) < rate))
        strength = torch.rand(len(some), 1, 1, 1, generator=noise)
        pixels[some] = change(pixels[some], strength, noise)
    return pixels.clamp(-1.0, 1.0)


def _blur(pixels: torch.Tensor, strength: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    """Towards a mean over some 4 x 4 pixels, weighted to the middle one."""
    blurred = torch.nn.functional.pad(pixels, (2, 2, 2, 2), mode="replicate")
    for distance in (1, 1, 2):  # slices of two dimensions: pooling takes several times as long
        blurred = (blurred[..., distance:, :] + blurred[..., :-distance, :]) / 2
        blurred = (blurred[..., distance:] + blurred[..., :-distance]) / 2
    return torch.lerp(pixels, blurred, strength)


def _grain(pixels: torch.Tensor, strength: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    return pixels + _STRONGEST_GRAIN * strength * torch.randn(pixels.shape, generator=noise)


def _mottle(pixels: torch.Tensor, strength: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Spots as wide as an eighth of the image."""
    coarse = torch.randn(len(pixels), 3, _MOTTLE_ACROSS, _MOTTLE_ACROSS, generator=noise)
    spots = torch.nn.functional.interpolate(coarse, size=pixels.shape[-2:], mode="bilinear")
    return pixels + _STRONGEST_MOTTLE * strength * spots


def _compress(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    quality = int(rng.integers(_LEAST_JPEG_QUALITY, _BEST_JPEG_QUALITY + 1))
    return np.asarray(compressed(Image.fromarray(image), quality))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """The image, saved as JPEG and read again."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(sink).convert("RGB")

"""Images to latents and back, through the checkpoint's autoencoder, in chunks that fit memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fpe_core.checkpoint import Checkpoint
from fpe_core.errors import ParameterError
from fpe_core.parameters import EditParameters
from fpe_core.rows import RowLimit


def latent_shape(checkpoint: Checkpoint, parameters: EditParameters) -> tuple[int, int, int]:
    """(C, h, w) of a latent at the parameters' size.

    Raises:
        ParameterError: a size the autoencoder's factor does not divide.
    """
    factor = checkpoint.vae_factor
    for name, size_px in (("width", parameters.width_px), ("height", parameters.height_px)):
        if size_px % factor:
            raise ParameterError(
                f"{name}_px must be a multiple of {factor} for this checkpoint, got {size_px}"
            )
    return (
        checkpoint.latent_channels,
        parameters.height_px // factor,
        parameters.width_px // factor,
    )


def latent_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Latents and DDIM arithmetic are float32 at least, whatever the networks run in."""
    return torch.promote_types(torch.float32, checkpoint.dtype)


def encode_images(checkpoint: Checkpoint, images: Sequence[Image.Image], limit: RowLimit) -> Tensor:
    """Posterior means times the autoencoder's own scaling factor, (images, C, h, w).

    Args:
        images: at least one RGB image, all of one size.
        limit: images per call.
    """
    vae = checkpoint.vae

    def encode(first: int, last: int) -> Tensor:
        pixels = np.stack([np.asarray(image) for image in images[first:last]])
        scaled = torch.from_numpy(pixels).to(checkpoint.device).permute(0, 3, 1, 2)
        mean: Tensor = vae.encode(scaled.to(checkpoint.dtype) / 127.5 - 1).latent_dist.mode()
        latents: Tensor = mean.to(latent_dtype(checkpoint)) * vae.config.scaling_factor
        return latents

    return limit.map(len(images), encode)


def decode_latents(
    checkpoint: Checkpoint, latents: Tensor, limit: RowLimit
) -> tuple[tuple[Image.Image, ...], tuple[bool, ...]]:
    """Latents (n, C, h, w) to RGB images, and per image whether all of it is finite.

    Finite latents need not give finite pixels: some autoencoders overflow in half precision. What
    is not finite becomes black.
    """
    vae = checkpoint.vae
    finite = [False] * len(latents)

    def decode(first: int, last: int) -> Tensor:
        scaled = (latents[first:last] / vae.config.scaling_factor).to(checkpoint.dtype)
        pixels: Tensor = vae.decode(scaled, return_dict=False)[0]
        # By place, not appended: a chunk that runs out of memory further down is decoded again.
        finite[first:last] = pixels.isfinite().flatten(1).all(dim=1).tolist()
        pixels = (pixels.float() * 127.5 + 127.5).nan_to_num(0.0).clamp(0, 255).round()
        return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu()

    if len(latents) == 0:
        return (), ()
    arrays = limit.map(len(latents), decode).numpy()
    return tuple(Image.fromarray(array) for array in arrays), tuple(finite)

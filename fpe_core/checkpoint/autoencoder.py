"""Images to latents and back, through the checkpoint's autoencoder, in chunks that fit memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fpe_core.checkpoint.load import Checkpoint
from fpe_core.errors import ParameterError
from fpe_core.parameters import EditParameters
from fpe_core.unet.fused import ChannelsLastNorms
from fpe_core.unet.row_limit import RowLimit


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


class Autoencoder:
    """A checkpoint's autoencoder.

    Attributes:
        scaling_factor: what latents are multiplied by, behind the encoder.
        encoder: (images, 3, H, W) in -1..1 to posterior means (images, C, h, w), unscaled.
        decoder: (images, C, h, w), unscaled, to (images, 3, H, W) in about -1..1.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.scaling_factor = float(checkpoint.vae.config.scaling_factor)
        self.encoder = _Network(partial(_means, checkpoint.vae))
        self.decoder = _Network(partial(_images, checkpoint.vae))

    def encode(self, images: Sequence[Image.Image], limit: RowLimit) -> Tensor:
        """Posterior means times the autoencoder's own scaling factor, (images, C, h, w).

        Args:
            images: at least one RGB image, all of one size.
            limit: images per call.
        """
        checkpoint = self._checkpoint

        def encode(first: int, last: int) -> Tensor:
            pixels = np.stack([np.asarray(image) for image in images[first:last]])
            scaled = torch.from_numpy(pixels).to(checkpoint.device).permute(0, 3, 1, 2)
            mean: Tensor = self.encoder(scaled.to(checkpoint.vae.dtype) / 127.5 - 1)
            return mean.to(latent_dtype(checkpoint)) * self.scaling_factor

        return limit.map(len(images), encode)

    def decode(
        self, latents: Tensor, limit: RowLimit
    ) -> tuple[tuple[Image.Image, ...], tuple[bool, ...]]:
        """Latents (n, C, h, w) to RGB images, and per image whether all of it is finite.

        Finite latents need not give finite pixels: some autoencoders overflow in half precision.
        Values that are not finite become 0.
        """
        finite = [False] * len(latents)

        def decode(first: int, last: int) -> Tensor:
            scaled = (latents[first:last] / self.scaling_factor).to(self._checkpoint.vae.dtype)
            pixels: Tensor = self.decoder(scaled)
            # By index, not appended: a chunk that runs out of memory below is decoded again.
            finite[first:last] = pixels.isfinite().flatten(1).all(dim=1).tolist()
            pixels = (pixels.float() * 127.5 + 127.5).nan_to_num(0.0).clamp(0, 255).round()
            return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu()

        if len(latents) == 0:
            return (), ()
        arrays = limit.map(len(latents), decode).numpy()
        return tuple(Image.fromarray(array) for array in arrays), tuple(finite)


class _Network(nn.Module):
    """Half of an autoencoder, as a module so that hooks can observe it."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._run = run

    def forward(self, images: Tensor) -> Tensor:
        """(images, ...) to (images, ...)."""
        with torch.cuda.device_of(images), ChannelsLastNorms():
            return self._run(images)


def _means(vae: Any, images: Tensor) -> Tensor:
    moments = vae.encoder(images)
    if vae.quant_conv is not None:
        moments = vae.quant_conv(moments)
    mean: Tensor = moments.chunk(2, dim=1)[0]
    return mean


def _images(vae: Any, latents: Tensor) -> Tensor:
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    images: Tensor = vae.decoder(latents)
    return images

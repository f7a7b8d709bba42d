"""Sharpens the decoder on latents that no longer change, while the encoder stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from fpe_core.still_life import workers
from fpe_core.still_life.progress import Budget, Run
from fpe_core.still_life.scenes_on_disk import as_pixels
from fpe_core.still_life.train_autoencoder import reconstruction_loss, reconstruction_psnr_db

_DECODER_PEAK_LR = 1e-3
_PICTURES_PER_STEP = 4  # in each process
_DECODER_RECORD_EVERY_STEPS = 200


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

    `latents` is (N, 4, 16, 16), those of the (N, 128, 128, 3) pictures, at unit scale.
    """
    autoencoder.to(device).train()
    parts = {"decoder": autoencoder.decoder, "post_quant_conv": autoencoder.post_quant_conv}
    weights = [weight for part in parts.values() for weight in part.parameters()]
    peak_lr = _DECODER_PEAK_LR * lr_scale
    optimizer = torch.optim.AdamW(weights, lr=peak_lr, weight_decay=1e-4)
    run = Run("decoder", folder, budget, optimizer, peak_lr, parts)
    for step in run.steps():
        rng = np.random.default_rng((seed, step, workers.rank()))
        chosen = np.sort(rng.integers(len(images), size=_PICTURES_PER_STEP))
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
        if step % _DECODER_RECORD_EVERY_STEPS == 0 and not workers.rank():
            psnr_db = reconstruction_psnr_db(autoencoder, range(16))
            run.record(loss=float(loss.detach()), psnr_db=psnr_db)
    autoencoder.eval()
    return run

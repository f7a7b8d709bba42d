"""Whether it pays that rows of one latent are one row until the first cross-attention.

It always saves work. But the rows have to be copied apart later than they would be, in the middle
of the pass, and where launching kernels takes longer than running them nothing is gained.
"""

from __future__ import annotations

import logging
import time

import torch

from fpe_core.unet.call import UNetCall
from fpe_core.unet.forward import Maps
from fpe_core.unet.prompts import TextKeys
from fpe_core.unet.rows import UNetRows

_ROUNDS = 5
_CLEARLY = 0.98  # of the time with sharing, which is less work and so has the benefit of the doubt
_TIMESTEP = 500
_log = logging.getLogger(__name__)


@torch.inference_mode()
def sharing_pays(
    unet: UNetCall, height: int, width: int, tokens: int, latents_at_once: int = 1
) -> bool:
    """Times the two rows of an edit, in turn with and without sharing; costs 24 UNet rows for each.

    Args:
        unet: left as it was.
        height, width: of the latents.
        tokens: of a prompt.
        latents_at_once: edits. A GPU with one of them waits for its kernels' launches, which tell
            nothing about a full one.
    """
    model = unet.parts.unet
    device, dtype = model.device, unet.dtype
    text = torch.zeros(1, tokens, model.config.cross_attention_dim, device=device, dtype=dtype)
    count = latents_at_once
    shape = count, model.config.in_channels, height, width
    latents = torch.zeros(shape, device=device, dtype=dtype)
    items = tuple(range(count)) * 2
    rows = UNetRows(items, (0,) * (2 * count), count, 1.0, device).chunk(0, 2 * count)
    prompts = TextKeys(unet.parts.cross_attentions, text).of_rows(rows.prompts)
    embedding, before = unet.embed(_TIMESTEP), unet.shares_prefix

    def seconds(shares: bool) -> float:
        unet.shares_prefix = shares
        began = time.perf_counter()
        unet(rows, latents, embedding, prompts, Maps())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    try:
        seconds(True), seconds(False)  # what a device does the first time only
        times = [(seconds(True), seconds(False)) for _ in range(_ROUNDS)]
    finally:
        unet.shares_prefix = before
    shared, apart = (min(each) for each in zip(*times, strict=True))
    pays = bool(apart >= _CLEARLY * shared)
    _log.info(
        "rows of one latent %s their first layers: %.3g s against %.3g s apart",
        "share" if pays else "do not share",
        shared,
        apart,
    )
    return pays

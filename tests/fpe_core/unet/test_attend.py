"""Attention goes through torch's fused kernel, so that no map is ever in memory."""

from __future__ import annotations

import torch
from torch.profiler import profile

from fpe_core import Checkpoint
from fpe_core.unet.exchange import Exchange, Site
from fpe_core.unet.forward import embed_timestep, forward
from fpe_core.unet.parts import parts_of
from fpe_core.unet.prompts import TextKeys

FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"
PLAIN = "aten::_scaled_dot_product_attention_math"
ATTENTIONS = 32


def test_ordinary_recorded_and_replaced_attentions_are_torch_s_fused_one(tiny: Checkpoint) -> None:
    """Self- and cross-attention of three passes, counted by the profiler."""
    parts = parts_of(tiny.unet)
    sites = tuple(Site(attention, "qk") for attention in range(0, ATTENTIONS, 2))
    text = torch.randn(2, 77, tiny.unet.config.cross_attention_dim)
    with torch.inference_mode():
        prompts = TextKeys(parts.cross_attentions, text).of_rows(torch.arange(2))
        latents, embedding = torch.randn(2, 4, 8, 8), embed_timestep(tiny.unet, 7)

        def run(exchange: Exchange):
            return forward(parts, latents, embedding, prompts, None, exchange=exchange)[
                1
            ].projections

        with profile() as seen:
            run(Exchange())
            made = run(Exchange(sites))
            run(Exchange(sites, made))
    assert len(made) == len(sites)
    counts = {event.key: event.count for event in seen.key_averages()}
    assert (counts.get(FUSED, 0), counts.get(PLAIN, 0)) == (3 * ATTENTIONS, 0)

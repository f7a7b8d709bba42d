"""Compares our UNet pass with diffusers' own, on a small random input, when a model is loaded.

`fpe_core.unet.forward` computes what diffusers' forward pass computes, module by module, as it was
in the versions that were tested. If another version computes something else, an edit would be
another picture under the same id.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpe_core.errors import CheckpointError
from fpe_core.unet.family import is_told_sizes
from fpe_core.unet.forward import embed_added, embed_timestep, forward
from fpe_core.unet.parts import parts_of
from fpe_core.unet.prompts import PromptRows

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Of the norm of the difference, as a share of the norm of diffusers' output.

Measured on a CPU with Stable Diffusion 1.5's shapes: 3e-6 in float32, 1e-3 in float16. Another
formula is far above.
"""
_TENSOR_FLOAT = 2e-2
"""For float32 on a GPU, where torch rounds the inputs of convolutions to 10 bits (TF32)."""
_TIMESTEP, _TOKENS = 501, 5
_SIZES = ((768, 1024, 0, 96, 512, 512), (512, 512, 0, 0, 512, 512))


@torch.inference_mode()
def check_against_diffusers(unet: Any) -> None:
    """Raises CheckpointError if diffusers' pass and ours differ by more than rounding.

    Takes about as long as one row of 64 px. A UNet without values (on the meta device), or whose
    own output is not finite on this input, is not judged.
    """
    if unet.device.type == "meta":
        return
    parts = parts_of(unet)
    edge = parts.multiple
    latents = _random(unet, 1, unet.config.in_channels, edge, edge)
    text = _random(unet, 2, _TOKENS, unet.config.cross_attention_dim)
    beside, added = {}, None
    if is_told_sizes(unet.config):
        waves = 6 * unet.config.addition_time_embed_dim
        pooled = _random(unet, 2, unet.config.projection_class_embeddings_input_dim - waves)
        sizes = torch.tensor(_SIZES, dtype=torch.float32, device=unet.device)
        beside = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        added = embed_added(unet, pooled, sizes)
    theirs = unet(
        latents.expand(2, -1, -1, -1), _TIMESTEP, encoder_hidden_states=text, **beside
    ).sample
    latent_of_row = torch.zeros(2, dtype=torch.int64, device=unet.device)
    embedding = embed_timestep(unet, _TIMESTEP)
    ours, _ = forward(parts, latents, embedding, PromptRows(text, (), added), latent_of_row)
    assert ours is not None
    if not theirs.isfinite().all():
        return
    distance = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
    is_rounded = unet.dtype == torch.float32 and unet.device.type != "cpu"
    if not distance <= (_TENSOR_FLOAT if is_rounded else TOLERANCE[unet.dtype]):
        import diffusers

        raise CheckpointError(
            f"diffusers {diffusers.__version__} computes this UNet in another way than this "
            f"program does: on the same input the outputs differ by {distance:.2g} of their size. "
            "Install the version of diffusers that is in constraints.txt"
        )


def _random(unet: Any, *shape: int) -> Tensor:
    """The same values on every machine; channels_last if it is an image."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*shape, generator=generator).to(unet.device, unet.dtype)
    if values.ndim == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    return values

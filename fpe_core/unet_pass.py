"""A UNet on rows that share latents: what the rows of a latent have in common is computed once.

The conditional and the unconditional row of an edit have one latent and one timestep. Until the
first cross-attention, the first layer that sees a prompt, they are the same row: one convolution,
one residual block and one self-attention, at the largest of all sizes. The time embedding is the
same for all rows of a step. Everything else is diffusers' forward pass, module by module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
_NOT_HERE = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
    "time_embedding_act_fn",
    "center_input_sample",
    "dual_cross_attention",
)


def can_share(unet: Any) -> bool:
    """Whether this is the plain UNet of Stable Diffusion 1.x and 2.x that `forward` knows.

    Any other one goes through diffusers' own forward pass, and shares nothing.
    """
    if type(unet).__name__ != "UNet2DConditionModel":
        return False
    config = unet.config
    if any(config.get(name) for name in _NOT_HERE):
        return False
    if any(type(block).__name__ not in _BLOCKS for block in (*unet.down_blocks, *unet.up_blocks)):
        return False
    if type(unet.mid_block).__name__ != "UNetMidBlock2DCrossAttn":
        return False
    return _begins_plainly(unet.down_blocks[0])


def forward(
    unet: Any,
    latents: Tensor,
    timestep: int,
    text: Tensor,
    latent_of_row: Tensor | None,
) -> Tensor:
    """The UNet's output for every row.

    Where the first self-attention has a processor with a true `tells_rows_apart`, the rows of a
    latent differ from there on, and go apart before it.

    Args:
        unet: one that `can_share`.
        latents: (latents, C, h, w), the distinct ones.
        timestep: 0..999, the same for all.
        text: (rows, tokens, width), each row's prompt.
        latent_of_row: (rows,), int64; None for one row per latent, in order.

    Returns:
        (rows, C, h, w).
    """
    # A tensor filled on the device: from a number, diffusers would copy one there and wait.
    times = torch.full((1,), timestep, dtype=torch.int64, device=latents.device)
    embedding = unet.time_embedding(unet.get_time_embed(latents[:1], times))
    hidden = unet.conv_in(latents)
    skips = [_apart(hidden, latent_of_row)]
    first, *others = unet.down_blocks
    hidden = first.resnets[0](hidden, embedding)
    hidden = _first_transformer(first.attentions[0], hidden, text, latent_of_row)
    skips.append(hidden)
    for resnet, transformer in zip(first.resnets[1:], first.attentions[1:], strict=True):
        hidden = resnet(hidden, embedding)
        hidden = transformer(hidden, encoder_hidden_states=text, return_dict=False)[0]
        skips.append(hidden)
    for downsampler in first.downsamplers or ():
        hidden = downsampler(hidden)
        skips.append(hidden)
    for block in others:
        hidden, made = block(hidden_states=hidden, temb=embedding, **_prompted(block, text))
        skips.extend(made)
    hidden = unet.mid_block(hidden, embedding, encoder_hidden_states=text)
    hidden = _up(unet, hidden, skips, embedding, text)
    output: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    return output


def _up(unet: Any, hidden: Tensor, skips: list[Tensor], embedding: Tensor, text: Tensor) -> Tensor:
    multiple = 2**unet.num_upsamplers
    # A size that halves to an odd one cannot be doubled back: the skip's size says what it was.
    odd = any(edge % multiple for edge in skips[0].shape[-2:])
    for block in unet.up_blocks:
        taken = len(block.resnets)
        made, skips = tuple(skips[-taken:]), skips[:-taken]
        hidden = block(
            hidden_states=hidden,
            temb=embedding,
            res_hidden_states_tuple=made,
            upsample_size=skips[-1].shape[2:] if odd and skips else None,
            **_prompted(block, text),
        )
    return hidden


def _first_transformer(
    transformer: Any, hidden: Tensor, text: Tensor, latent_of_row: Tensor | None
) -> Tensor:
    """Transformer2DModel on (latents, C, h, w), and its output (rows, C, h, w)."""
    _, _, height, width = hidden.shape
    residual = hidden
    hidden = transformer.norm(hidden)
    if not transformer.use_linear_projection:
        hidden = transformer.proj_in(hidden)
    hidden = hidden.permute(0, 2, 3, 1).flatten(1, 2)
    if transformer.use_linear_projection:
        hidden = transformer.proj_in(hidden)
    first, *others = transformer.transformer_blocks
    normed = first.norm1(hidden)
    if getattr(first.attn1.processor, "tells_rows_apart", False):
        hidden = first.attn1(_apart(normed, latent_of_row)) + _apart(hidden, latent_of_row)
    else:
        hidden = _apart(first.attn1(normed) + hidden, latent_of_row)
    hidden = first.attn2(first.norm2(hidden), encoder_hidden_states=text) + hidden
    hidden = first.ff(first.norm3(hidden)) + hidden
    for block in others:
        hidden = block(hidden, encoder_hidden_states=text)
    if transformer.use_linear_projection:
        hidden = transformer.proj_out(hidden)
    hidden = hidden.unflatten(1, (height, width)).permute(0, 3, 1, 2).contiguous()
    if not transformer.use_linear_projection:
        hidden = transformer.proj_out(hidden)
    return hidden + _apart(residual, latent_of_row)


def _prompted(block: Any, text: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}


def _apart(shared: Tensor, latent_of_row: Tensor | None) -> Tensor:
    """(latents, ...) to (rows, ...), in the memory layout it had."""
    if latent_of_row is None:
        return shared
    rows = shared[latent_of_row]
    if shared.ndim == 4 and shared.is_contiguous(memory_format=torch.channels_last):
        return rows.contiguous(memory_format=torch.channels_last)
    return rows


def _begins_plainly(block: Any) -> bool:
    if type(block).__name__ != "CrossAttnDownBlock2D":
        return False
    transformer = block.attentions[0]
    if type(transformer).__name__ != "Transformer2DModel" or not transformer.is_input_continuous:
        return False
    first = transformer.transformer_blocks[0]
    return (
        type(first).__name__ == "BasicTransformerBlock"
        and first.norm_type == "layer_norm"
        and first.attn2 is not None
        and first.pos_embed is None
        and not first.only_cross_attention
        and not hasattr(first, "fuser")
        and first._chunk_size is None
    )

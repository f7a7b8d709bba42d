"""One pass through a UNet: rows that share latents, attention maps that are recorded or injected.

The conditional and the unconditional row of an edit have one latent and one timestep. Until the
first cross-attention, the first layer that sees a prompt, they are the same row: one convolution,
one residual block and one self-attention, at the largest of all sizes. The time embedding is the
same for all rows of a step. (In Stable Diffusion XL it has a part of the prompt and of the
picture's size, so that there only the first convolution is shared.) Everything else is diffusers'
forward pass, module by module.

`forward` is a function of its arguments alone: it reads no state that changes between calls, so
that it can be captured as a whole (`fpe_core.unet.cuda_graphs`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fpe_core.unet.exchange import Exchange, Handed
from fpe_core.unet.fused import gated_gelu, group_norm, is_plain_resnet, residual_block, runs_on
from fpe_core.unet.parts import DOWN, JOIN, KEEP, RESNET, TRANSFORMER, UNetParts
from fpe_core.unet.pass_rows import PassRows
from fpe_core.unet.prompts import PromptRows

NOTHING = Exchange()


def forward(
    parts: UNetParts,
    latents: Tensor,
    embedding: Tensor,
    prompts: PromptRows,
    latent_of_row: Tensor | None,
    *,
    exchange: Exchange = NOTHING,
) -> tuple[Tensor | None, Handed]:
    """The UNet's output for every row, and what they hand over.

    Args:
        latents: (latents, C, h, w), each distinct one once.
        embedding: (1, width), the timestep's, the same for all; see `embed_timestep`.
        prompts: of the rows. If something is added to the timestep's embedding (`embed_added`),
            rows of one latent differ from the first residual block on.
        latent_of_row: (rows,), int64; None for one row per latent, in order.
        exchange: what to record or to inject.

    Returns:
        the output, (rows, C, h, w), None with `exchange.only`; what was recorded.
    """
    unet, rows = parts.unet, PassRows(prompts, latent_of_row, exchange)
    is_odd = any(edge % parts.multiple for edge in latents.shape[-2:])
    fuses = runs_on(latents.device, latents.dtype)
    hidden = unet.conv_in(latents)
    if prompts.added is not None:
        embedding = embedding + prompts.added
        hidden = rows.expanded(hidden)
        rows.are_shared = False
    kept: list[Tensor] = []
    places = {number: place for place, (number, _) in enumerate(exchange.resnets)}
    for number, (kind, module) in enumerate(parts.steps):
        if kind == RESNET and number in places:
            if rows.are_shared:  # they differ from here on
                hidden, kept = rows.expanded(hidden), [rows.expanded(each) for each in kept]
                rows.are_shared = False
            hidden = _exchanged(
                module, hidden, embedding, rows, exchange=exchange, place=places[number]
            )
            if rows.are_done:
                return None, rows.handed
        elif kind == RESNET:
            block = residual_block if fuses and is_plain_resnet(module) else _call
            hidden = block(module, hidden, embedding)
        elif kind == TRANSFORMER:
            kept = [rows.expanded(each) for each in kept] if rows.are_shared else kept
            after = _transformed(module, hidden, rows)
            if after is None:
                return None, rows.handed
            hidden = after
        elif kind == KEEP:
            kept.append(hidden)
        elif kind == JOIN:
            hidden = torch.cat([hidden, kept.pop()], dim=1)
        elif kind == DOWN:
            hidden = module(hidden)
        else:
            # Doubling does not restore an odd size, so it is taken from the skip connection.
            hidden = module(hidden, kept[-1].shape[2:] if is_odd else None)
    return _output(unet, hidden, fuses), rows.handed


def _exchanged(
    resnet: Any,
    hidden: Tensor,
    embedding: Tensor,
    rows: PassRows,
    *,
    exchange: Exchange,
    place: int,
) -> Tensor:
    """A residual block whose residual is recorded or given, `is_plain_resnet`, by torch alone."""
    first = exchange.resnets[place][1]
    if exchange.residuals:
        residual = exchange.residuals[place]
        if first:
            residual = torch.cat([_residual(resnet, hidden[:first], embedding), residual])
    else:
        residual = _residual(resnet, hidden, embedding)
        rows.record_residual(first, residual)
        if rows.are_done:
            return hidden
    shortcut = hidden if resnet.conv_shortcut is None else resnet.conv_shortcut(hidden)
    joined: Tensor = shortcut + residual
    return joined


def _residual(resnet: Any, hidden: Tensor, embedding: Tensor) -> Tensor:
    """What a residual block adds to its shortcut."""
    inner = resnet.conv1(functional.silu(resnet.norm1(hidden)))
    inner = inner + resnet.time_emb_proj(functional.silu(embedding))[:, :, None, None]
    residual: Tensor = resnet.conv2(functional.silu(resnet.norm2(inner)))
    return residual


def _output(unet: Any, hidden: Tensor, fuses: bool) -> Tensor:
    """What comes after the last block."""
    if fuses and isinstance(unet.conv_act, nn.SiLU):
        hidden = group_norm(hidden, unet.conv_norm_out, silu=True)
    else:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    output: Tensor = unet.conv_out(hidden)
    return output


def embed_timestep(unet: Any, timestep: int) -> Tensor:
    """The embedding of a timestep, 0..999, for the residual blocks: (1, width), UNet's dtype."""
    # Filled on the device: made from a number, it would be copied there, and the host would wait.
    time = torch.full((1,), timestep, dtype=torch.int64, device=unet.device)
    embedding: Tensor = unet.time_embedding(unet.time_proj(time).to(unet.dtype))
    return embedding


def embed_added(unet: Any, pooled: Tensor, sizes: Tensor) -> Tensor:
    """What Stable Diffusion XL adds to the embedding of every timestep, of n prompts.

    Args:
        pooled: their pooled embeddings, (n, width).
        sizes: the `SizeIds` of the pictures they are for, (n, 6).

    Returns:
        (n, width of the timestep's embedding), UNet's dtype.
    """
    waves = unet.add_time_proj(sizes.flatten()).reshape(len(sizes), -1)
    embedding: Tensor = unet.add_embedding(torch.cat([pooled, waves], dim=-1).to(unet.dtype))
    return embedding


def _transformed(transformer: Any, hidden: Tensor, rows: PassRows) -> Tensor | None:
    """Transformer2DModel on (rows or latents, C, h, w); (rows, C, h, w), None if the pass ends."""
    _, _, height, width = hidden.shape
    residual = rows.expanded(hidden) if rows.are_shared else hidden
    fuses = runs_on(hidden.device, hidden.dtype)
    hidden = group_norm(hidden, transformer.norm) if fuses else transformer.norm(hidden)
    if not transformer.use_linear_projection:
        hidden = transformer.proj_in(hidden)
    hidden = hidden.permute(0, 2, 3, 1).flatten(1, 2)
    if transformer.use_linear_projection:
        hidden = transformer.proj_in(hidden)
    for block in transformer.transformer_blocks:
        after = _block(block, hidden, rows)
        if after is None:
            return None
        hidden = after
    if transformer.use_linear_projection:
        hidden = transformer.proj_out(hidden)
    hidden = hidden.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # that is channels_last
    if not transformer.use_linear_projection:
        hidden = transformer.proj_out(hidden)
    return hidden + residual


def _block(block: Any, hidden: Tensor, rows: PassRows) -> Tensor | None:
    """BasicTransformerBlock on (rows or latents, tokens, channels); None if the pass ends here."""
    normed = block.norm1(hidden)
    if rows.are_shared and rows.next_differs:
        normed, hidden = rows.expanded(normed), rows.expanded(hidden)
        rows.are_shared = False
    attended = rows.attend_self(block.attn1, normed)
    if attended is None:
        return None
    hidden = attended + hidden
    if rows.are_shared:
        hidden = rows.expanded(hidden)
        rows.are_shared = False
    attended = rows.attend_text(block.attn2, block.norm2(hidden))
    if attended is None:
        return None
    hidden = attended + hidden
    return _feed_forward(block.ff, block.norm3(hidden)) + hidden


def _feed_forward(feed_forward: Any, hidden: Tensor) -> Tensor:
    """diffusers' FeedForward."""
    first, *others = feed_forward.net
    if type(first).__name__ != "GEGLU" or not runs_on(hidden.device, hidden.dtype):
        after: Tensor = feed_forward(hidden)
        return after
    hidden = gated_gelu(first.proj(hidden))
    for each in others:
        hidden = each(hidden)
    return hidden


def _call(module: Any, hidden: Tensor, embedding: Tensor) -> Tensor:
    after: Tensor = module(hidden, embedding)
    return after

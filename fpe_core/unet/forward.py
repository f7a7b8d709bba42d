"""One pass through a UNet: rows that share latents, attention maps that are recorded or injected.

The conditional and the unconditional row of an edit have one latent and one timestep. Until the
first cross-attention, the first layer that sees a prompt, they are the same row: one convolution,
one residual block and one self-attention, at the largest of all sizes. The time embedding is the
same for all rows of a step. Everything else is diffusers' forward pass, module by module.

`forward` is a function of its arguments alone: it reads no state that changes between calls, so
that it can be captured as a whole (`fpe_core.unet.cuda_graphs`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fpe_core.errors import CheckpointError
from fpe_core.unet.attend import attend
from fpe_core.unet.attention import AttentionMap
from fpe_core.unet.family import BLOCKS, MIDDLE_BLOCK, config_differences
from fpe_core.unet.fused import gated_gelu, group_norm, is_plain_resnet, residual_block, runs_on
from fpe_core.unet.prompts import PromptRows

RESNET, TRANSFORMER, KEEP, JOIN, DOWN, UP = range(6)


class UNetParts(NamedTuple):
    """A UNet as the list of its operations, in order.

    Attributes:
        unet: the whole UNet, for what comes before and after the steps.
        steps: (one of the constants above, the module that does it). KEEP stores the hidden state
            for a skip connection, JOIN takes the one stored last.
        multiple: latents whose height and width are multiples of this have no odd size on the way
            down.
    """

    unet: Any
    steps: tuple[tuple[int, Any], ...]
    multiple: int

    @property
    def cross_attentions(self) -> tuple[Any, ...]:
        """The cross-attention layers in order of execution."""
        return tuple(
            block.attn2
            for kind, module in self.steps
            if kind == TRANSFORMER
            for block in module.transformer_blocks
        )


class Maps(NamedTuple):
    """What a pass does with the maps of some attentions, by default nothing.

    Attributes:
        attentions: which, see `SourceMaps`.
        first_row: the rows from this one on; the rows before it attend with their own maps.
        injected: for each of `attentions` the map that the rows attend with; if empty, the rows'
            own maps are recorded.
        only: the output is not needed, and the pass ends with the last map.
    """

    attentions: tuple[int, ...] = ()
    first_row: int = 0
    injected: tuple[AttentionMap, ...] = ()
    only: bool = False


def parts_of(unet: Any) -> UNetParts:
    """A UNet2DConditionModel of the Stable Diffusion 1.x and 2.x families, in parts.

    Raises:
        CheckpointError: it is of another kind.
    """
    if found := differences(unet):
        raise CheckpointError(f"the UNet is not of Stable Diffusion 1.x's kind: {'; '.join(found)}")
    steps: list[tuple[int, Any]] = [(KEEP, None)]
    for block in unet.down_blocks:
        for layer in _layers(block):
            steps += [*layer, (KEEP, None)]
        if block.downsamplers:
            steps += [*((DOWN, each) for each in block.downsamplers), (KEEP, None)]
    if unet.mid_block is not None:
        first, *others = unet.mid_block.resnets
        steps.append((RESNET, first))
        for transformer, resnet in zip(unet.mid_block.attentions, others, strict=True):
            steps += [(TRANSFORMER, transformer), (RESNET, resnet)]
    for block in unet.up_blocks:
        for layer in _layers(block):
            steps += [(JOIN, None), *layer]
        steps += [(UP, each) for each in block.upsamplers or ()]
    return UNetParts(unet, tuple(steps), 2**unet.num_upsamplers)


def forward(
    parts: UNetParts,
    latents: Tensor,
    embedding: Tensor,
    prompts: PromptRows,
    latent_of_row: Tensor | None,
    *,
    maps: Maps,
) -> tuple[Tensor | None, tuple[AttentionMap, ...]]:
    """The UNet's output for every row, and the recorded maps.

    Args:
        latents: (latents, C, h, w), each distinct one once.
        embedding: (1, width), the timestep's, the same for all; see `embed_timestep`.
        prompts: of the rows.
        latent_of_row: (rows,), int64; None for one row per latent, in order.
        maps: which attention maps to return, or to inject.

    Returns:
        the output, (rows, C, h, w), None with `maps.only`; the maps of `maps.attentions` of the
        rows from `maps.first_row` on, empty if maps were injected.
    """
    unet, rows = parts.unet, _Rows(prompts, latent_of_row, maps)
    is_odd = any(edge % parts.multiple for edge in latents.shape[-2:])
    fuses = runs_on(latents.device, latents.dtype)
    hidden = unet.conv_in(latents)
    kept: list[Tensor] = []
    for kind, module in parts.steps:
        if kind == RESNET:
            block = residual_block if fuses and is_plain_resnet(module) else _call
            hidden = block(module, hidden, embedding)
        elif kind == TRANSFORMER:
            kept = [rows.expanded(each) for each in kept] if rows.are_shared else kept
            after = _transformed(module, hidden, rows)
            if after is None:
                return None, tuple(rows.recorded)
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
    return _output(unet, hidden, fuses), tuple(rows.recorded)


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


class _Rows:
    """The rows of one pass: whether they still share latents, and which attention is next."""

    def __init__(self, prompts: PromptRows, latent_of_row: Tensor | None, maps: Maps) -> None:
        self.are_shared = latent_of_row is not None
        self.recorded: list[AttentionMap] = []
        self._prompts = prompts
        self._latent_of_row = latent_of_row
        self._maps = maps
        self._next = 0

    def expanded(self, shared: Tensor) -> Tensor:
        """(latents, ...) to (rows, ...), in the memory layout it had."""
        if self._latent_of_row is None:
            return shared
        rows = shared[self._latent_of_row]
        if shared.ndim == 4 and shared.is_contiguous(memory_format=torch.channels_last):
            return rows.contiguous(memory_format=torch.channels_last)
        return rows

    @property
    def next_differs(self) -> bool:
        """Whether the next attention differs between rows of one latent: its maps are replaced or
        recorded."""
        return self._next in self._maps.attentions

    def attend_self(self, attn: Any, hidden: Tensor) -> Tensor | None:
        """(rows, tokens, channels) to the same; None if the pass ends here."""
        return self._attend(
            attn, hidden, lambda first: attn.to_k(hidden[:first]), lambda: attn.to_v(hidden)
        )

    def attend_text(self, attn: Any, hidden: Tensor) -> Tensor | None:
        """(rows, tokens, channels) to the same; None if the pass ends here."""
        if self._prompts.keys:
            key, value = self._prompts.keys[self._next // 2]
            return self._attend(attn, hidden, lambda first: key[:first], lambda: value)
        text = self._prompts.embeddings
        return self._attend(
            attn, hidden, lambda first: attn.to_k(text[:first]), lambda: attn.to_v(text)
        )

    def _attend(
        self,
        attn: Any,
        hidden: Tensor,
        key_of_first: Callable[[int], Tensor],
        value: Callable[[], Tensor],
    ) -> Tensor | None:
        """`key_of_first(n)`: the keys of the first n rows."""
        attention, count, maps = self._next, hidden.shape[0], self._maps
        self._next += 1
        if attention in maps.attentions and maps.injected:
            query, key = maps.injected[maps.attentions.index(attention)]
            if maps.first_row:  # the other rows; those with a map injected need no to_q and to_k
                query = torch.cat([attn.to_q(hidden[: maps.first_row]), query])
                key = torch.cat([key_of_first(maps.first_row), key])
        else:
            query, key = attn.to_q(hidden), key_of_first(count)
        if attention in maps.attentions and not maps.injected:
            self.recorded.append(AttentionMap(query[maps.first_row :], key[maps.first_row :]))
            if maps.only and attention == maps.attentions[-1]:
                return None
        return attend(attn, hidden, query, key, value())


def _transformed(transformer: Any, hidden: Tensor, rows: _Rows) -> Tensor | None:
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


def _block(block: Any, hidden: Tensor, rows: _Rows) -> Tensor | None:
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


def _layers(block: Any) -> list[list[tuple[int, Any]]]:
    """The residual layers of a block, each with the transformer that follows it, if any."""
    transformers = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return [
        [(RESNET, resnet), *([] if transformer is None else [(TRANSFORMER, transformer)])]
        for resnet, transformer in zip(block.resnets, transformers, strict=True)
    ]


def differences(unet: Any) -> list[str]:
    """Why `forward` would not compute this UNet correctly, as text; empty if it would."""
    if type(unet).__name__ != "UNet2DConditionModel":
        return [f"it is a {type(unet).__name__}"]
    found = config_differences(unet.config)
    kinds = _names((*unet.down_blocks, *unet.up_blocks))
    kinds += [] if unet.mid_block is None else _names([unet.mid_block])
    known = (*BLOCKS, MIDDLE_BLOCK)
    found += [f"it has a {kind}" for kind in kinds if kind not in known and not found]
    if any(getattr(block, name, None) for block in unet.up_blocks for name in ("s1", "b1")):
        found.append("FreeU is on")
    if not found:
        transformers = [m for m in unet.modules() if _names([m]) == ["Transformer2DModel"]]
        if not all(_is_plain_transformer(each) for each in transformers):
            found.append("its transformers are of another kind")
    return found


def _names(modules: Any) -> list[str]:
    return list(dict.fromkeys(type(module).__name__ for module in modules))


def _is_plain_transformer(transformer: Any) -> bool:
    return transformer.is_input_continuous and all(
        _names([block]) == ["BasicTransformerBlock"]
        and block.norm_type == "layer_norm"
        and block.attn2 is not None
        and block.pos_embed is None
        and not block.only_cross_attention
        and not hasattr(block, "fuser")
        and block._chunk_size is None
        and _is_plain_attention(block.attn1)
        and _is_plain_attention(block.attn2)
        for block in transformer.transformer_blocks
    )


def _is_plain_attention(attn: Any) -> bool:
    """Whether there is nothing between a layer's input and its projections."""
    extras = (attn.norm_q, attn.norm_k, attn.norm_cross, attn.group_norm, attn.spatial_norm)
    return (
        type(attn.processor).__name__ == "AttnProcessor2_0"
        and all(extra is None for extra in extras)
        and not getattr(attn, "fused_projections", False)
    )

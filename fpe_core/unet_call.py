"""Calls of a checkpoint's UNet on chunks of rows, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fpe_core.attention import AttentionMap
from fpe_core.compilation import FixedShapes, compiled
from fpe_core.text_keys import PromptRows
from fpe_core.unet_pass import Maps, embed_timestep, forward, parts_of
from fpe_core.unet_rows import Chunk


class UNetCall(nn.Module):
    """A UNet2DConditionModel on the rows of a chunk. A module for its hooks: one call, one pass.

    Attributes:
        parts: the UNet.
        shares_prefix: whether rows of one latent are one row until the first cross-attention.
    """

    def __init__(self, unet: Any, *, compiler: str | None = None) -> None:
        """`compiler`: a backend of torch.compile; see `fpe_core.compilation`.

        Raises:
            CheckpointError: a UNet that is not of Stable Diffusion 1.x's kind.
            ParameterError: torch has no such backend.
        """
        super().__init__()
        self.parts = parts_of(unet)
        self._eager: Callable[..., Any] = partial(forward, self.parts)
        self._graph = None if compiler is None else compiled(self._eager, compiler)
        self._shapes = FixedShapes(rows_of=lambda shape: sum(shape[1:]))
        self.shares_prefix = True

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights, and of what goes in and comes out."""
        dtype: torch.dtype = self.parts.unet.dtype
        return dtype

    def fitted(
        self, chunk: Chunk, latent_shape: Sequence[int], maps: Maps, most_rows: int
    ) -> Chunk:
        """The chunk, filled up to a shape that is compiled for and has at most so many rows; as it
        is where nothing is compiled."""
        if self._graph is None or (chunk.latent_of_row is None and chunk.first_conditional):
            return chunk
        kind = (*latent_shape, maps.attentions, bool(maps.given), maps.only)
        shape = self._shapes.choose((*kind, chunk.latent_of_row is None), chunk.shape, most_rows)
        return chunk if shape is None else chunk.filled_up(*shape)

    def forward(
        self,
        chunk: Chunk,
        latents: Tensor,
        embedding: Tensor,
        prompts: PromptRows,
        maps: Maps,
    ) -> tuple[Tensor | None, tuple[AttentionMap, ...]]:
        """See `fpe_core.unet_pass.forward`; a chunk that is `fitted` goes through a graph."""
        latent_of_row = chunk.latent_of_row
        if latent_of_row is not None and not self.shares_prefix:
            latents, latent_of_row = latents[latent_of_row], None
        latents = latents.contiguous(memory_format=torch.channels_last)
        run = self._graph if self._graph is not None and chunk.is_fitted else self._eager
        made: tuple[Tensor | None, tuple[AttentionMap, ...]] = run(
            latents, embedding, prompts, latent_of_row, maps=maps
        )
        return made

    def embed(self, timestep: int) -> Tensor:
        """(1, width); see `fpe_core.unet_pass.embed_timestep`."""
        return embed_timestep(self.parts.unet, timestep)

"""Calls of a checkpoint's UNet on chunks of rows, as CUDA graphs where these are faster."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fpe_core.unet.cuda_graphs import CudaGraphs
from fpe_core.unet.exchange import Exchange, Handed, Projections
from fpe_core.unet.forward import embed_added, embed_timestep, forward
from fpe_core.unet.parts import UNetParts, parts_of
from fpe_core.unet.prompts import EncodedPrompts, PromptRows
from fpe_core.unet.rows import Chunk


class _Arguments(NamedTuple):
    """The arguments of one pass; see `fpe_core.unet.forward.forward`."""

    latents: Tensor
    embedding: Tensor
    prompts: PromptRows
    latent_of_row: Tensor | None
    exchange: Exchange

    def run(self, parts: UNetParts) -> tuple[Tensor | None, Handed]:
        return forward(parts, *self[:-1], exchange=self.exchange)

    @property
    def kind(self) -> Hashable:
        """All that is not a tensor: passes of equal kind and tensor shapes run the same kernels.

        Of a pass that exchanges maps, as the other properties are: `Exchange.is_of_maps`.
        """
        exchange = self.exchange
        return (
            self.latent_of_row is None,
            len(self.prompts.keys),
            self.prompts.added is None,
            exchange.sites,
            exchange.only,
            len(exchange.given),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        latent_of_row = () if self.latent_of_row is None else (self.latent_of_row,)
        keys = (each for pair in self.prompts.keys for each in pair)
        added = () if self.prompts.added is None else (self.prompts.added,)
        text = (self.prompts.embeddings, *keys, *added)
        return self.latents, self.embedding, *latent_of_row, *text, *_flat(self.exchange.given)

    def with_tensors(self, tensors: Sequence[Tensor]) -> _Arguments:
        """The arguments of another pass of this kind, from its `tensors`."""
        rest = iter(tensors)
        latents, embedding = next(rest), next(rest)
        latent_of_row = None if self.latent_of_row is None else next(rest)
        embeddings = next(rest)
        keys = tuple((next(rest), next(rest)) for _ in self.prompts.keys)
        prompts = PromptRows(embeddings, keys, None if self.prompts.added is None else next(rest))
        given = tuple(Projections(next(rest), next(rest)) for _ in self.exchange.given)
        exchange = self.exchange._replace(given=given)
        return _Arguments(latents, embedding, prompts, latent_of_row, exchange)


def _flat(maps: Sequence[Projections]) -> tuple[Tensor, ...]:
    """Queries and keys, one after the other."""
    return tuple(each for one in maps for each in (one.query, one.key) if each is not None)


class UNetCall(nn.Module):
    """Runs a UNet2DConditionModel on the rows of a chunk.

    A module, so that hooks can observe it: each call is one pass.

    Attributes:
        parts: the UNet.
        graphs: captured passes; used on CUDA only.
    """

    def __init__(self, unet: Any) -> None:
        """Raises CheckpointError for a UNet that is not of Stable Diffusion's kind."""
        super().__init__()
        self.parts = parts_of(unet)
        self.graphs = CudaGraphs()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights, inputs and outputs."""
        dtype: torch.dtype = self.parts.unet.dtype
        return dtype

    def forward(
        self,
        chunk: Chunk,
        latents: Tensor,
        embedding: Tensor,
        prompts: PromptRows,
        exchange: Exchange,
    ) -> tuple[Tensor | None, Handed]:
        """See `fpe_core.unet.forward.forward`."""
        latents = latents.contiguous(memory_format=torch.channels_last)
        arguments = _Arguments(latents, embedding, prompts, chunk.latent_of_row, exchange)
        with torch.cuda.device_of(latents):  # Triton and graphs work on the current one
            if self._can_capture(latents) and exchange.is_of_maps:
                return self._captured(arguments)
            return arguments.run(self.parts)

    @staticmethod
    def _can_capture(latents: Tensor) -> bool:
        return latents.is_cuda

    def _captured(self, arguments: _Arguments) -> tuple[Tensor | None, Handed]:
        def run(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            output, handed = arguments.with_tensors(tensors).run(self.parts)
            flat = _flat(handed.projections)
            return flat if output is None else (output, *flat)

        made = self.graphs.run(arguments.kind, run, arguments.tensors)
        output, flat = (None, made) if arguments.exchange.only else (made[0], made[1:])
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return output, Handed(tuple(Projections(query, key) for query, key in pairs))

    def embed(self, timestep: int) -> Tensor:
        """(1, width); see `fpe_core.unet.forward.embed_timestep`."""
        return embed_timestep(self.parts.unet, timestep)

    def embed_beside(self, text: EncodedPrompts) -> Tensor | None:
        """What prompts add to every timestep's embedding, (prompts, width); see
        `fpe_core.unet.forward.embed_added`. None: nothing."""
        if text.pooled is None or text.sizes is None:
            return None
        return embed_added(self.parts.unet, text.pooled, text.sizes)

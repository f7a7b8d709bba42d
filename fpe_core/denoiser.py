"""The UNet on the rows of a step, in as many chunks as memory asks for.

A row is one latent through the UNet once. A row that is only there for its attention maps stops at
the last layer that is replaced; it is cheaper, and counted as a row all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from fpe_core.attention import MapReplacement
from fpe_core.attention_kernels import AttentionKernels
from fpe_core.checkpoint import Checkpoint
from fpe_core.rows import RowLimit
from fpe_core.text import EncodedPrompts
from fpe_core.text_keys import TextKeys
from fpe_core.unet_pass import can_share, forward
from fpe_core.unet_rows import Chunk, UNetRows

Mode = Callable[[int, Tensor], AbstractContextManager[None]]
"""`mode(first_row, items)` is entered around each chunk: chunk rows from `first_row` on are
conditional and belong to the latents `items`."""


def own_maps(_first_row: int, _items: Tensor) -> AbstractContextManager[None]:
    """The mode in which no map is recorded or replaced."""
    return nullcontext()


class Denoiser:
    """A checkpoint's UNet with the prompts of one call, open while the call lasts.

    Attributes:
        text: the prompts, encoded.
        latent_dtype: of the latents and of what comes back, whatever the UNet's own type.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: EncodedPrompts,
        limit: RowLimit,
        latent_dtype: torch.dtype,
    ) -> None:
        self.latent_dtype = latent_dtype
        self._checkpoint = checkpoint
        self.text = text
        self._limit = limit
        self._shares = can_share(checkpoint.unet)
        self._kernels = AttentionKernels(checkpoint.unet)
        self._text_keys = TextKeys(checkpoint.unet, text.embeddings)

    def __enter__(self) -> Self:
        self._kernels.__enter__()
        self._text_keys.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._text_keys.__exit__(kind, error, traceback)
        self._kernels.__exit__(kind, error, traceback)

    def evaluate(self, rows: UNetRows, z: Tensor, timestep: int, mode: Mode = own_maps) -> Tensor:
        """The UNet's output for every row, (rows, C, h, w). `z`: the latents, (items, C, h, w).

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """
        if len(rows) == 0:
            return z[:0]
        came: list[int] = []

        def part(first: int, last: int) -> Tensor:
            chunk = rows.chunk(first, last)
            with mode(chunk.first_conditional, chunk.conditional_items):
                outputs = self._run(chunk, z, timestep)
            came.extend(chunk.rows)
            return outputs

        return rows.in_order(self._limit.map(len(rows), part), came)

    def record(self, rows: UNetRows, z: Tensor, timestep: int, maps: MapReplacement) -> None:
        """Leaves the rows' maps in `maps` and computes nothing past the last of them.

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """

        def part(first: int, last: int) -> Tensor:
            with maps.recording(first_row=0, only_maps=True):
                self._run(rows.chunk(first, last), z, timestep)
            return z[:0]

        self._limit.map(len(rows), part)

    def _run(self, chunk: Chunk, z: Tensor, timestep: int) -> Tensor:
        unet, text = self._checkpoint.unet, self.text.embeddings[chunk.prompts]
        latents = z[chunk.latents].to(self._checkpoint.dtype)
        latents = latents.contiguous(memory_format=torch.channels_last)
        with self._text_keys.of_rows(chunk.prompts):
            if self._shares:
                output = forward(unet, latents, timestep, text, chunk.latent_of_row)
            else:
                if chunk.latent_of_row is not None:
                    latents = latents[chunk.latent_of_row]
                output = unet(latents, timestep, encoder_hidden_states=text, return_dict=False)[0]
        return output.to(self.latent_dtype)

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
from fpe_core.checkpoint import Checkpoint
from fpe_core.rows import RowLimit
from fpe_core.text import EncodedPrompts
from fpe_core.text_keys import TextKeys
from fpe_core.unet_rows import UNetRows

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
        self._text_keys = TextKeys(checkpoint.unet, text.embeddings)

    def __enter__(self) -> Self:
        self._text_keys.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._text_keys.__exit__(kind, error, traceback)

    def evaluate(self, rows: UNetRows, z: Tensor, timestep: int, mode: Mode = own_maps) -> Tensor:
        """The UNet's output for every row, (rows, C, h, w). `z`: the latents, (items, C, h, w).

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """

        def chunk(first: int, last: int) -> Tensor:
            items = rows.items[first:last]
            conditional_from = min(max(rows.first_conditional - first, 0), last - first)
            with mode(conditional_from, items[conditional_from:]):
                return self._run(rows, z, timestep, first, last)

        return self._limit.map(len(rows), chunk) if len(rows) else z[:0]

    def record(self, rows: UNetRows, z: Tensor, timestep: int, maps: MapReplacement) -> None:
        """Leaves the rows' maps in `maps` and computes nothing past the last of them.

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """

        def chunk(first: int, last: int) -> Tensor:
            with maps.recording(first_row=0, only_maps=True):
                self._run(rows, z, timestep, first, last)
            return z[:0]

        self._limit.map(len(rows), chunk)

    def _run(self, rows: UNetRows, z: Tensor, timestep: int, first: int, last: int) -> Tensor:
        sample = z[rows.items[first:last]].to(self._checkpoint.dtype)
        prompts = rows.prompts[first:last]
        with self._text_keys.of_rows(prompts):
            output: Tensor = self._checkpoint.unet(
                sample.contiguous(memory_format=torch.channels_last),
                timestep,
                encoder_hidden_states=self.text.embeddings[prompts],
                return_dict=False,
            )[0]
        return output.to(self.latent_dtype)

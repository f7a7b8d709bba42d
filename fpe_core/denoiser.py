"""The UNet on the rows of a step, in as many chunks as memory asks for.

A row is one latent through the UNet once. A row that is only there for its attention maps stops at
the last layer that is replaced; it is cheaper, and counted as a row all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from fpe_core.attention import MapReplacement
from fpe_core.checkpoint import Checkpoint
from fpe_core.parameters import EditParameters
from fpe_core.rows import RowLimit
from fpe_core.text import EncodedPrompts
from fpe_core.text_keys import TextKeys

Mode = Callable[[int, Tensor], AbstractContextManager[None]]
"""`mode(first_row, items)` is entered around each chunk: chunk rows from `first_row` on are
conditional and belong to the latents `items`."""


@dataclass(frozen=True)
class UNetRows:
    """The UNet rows of one step: which latent and which prompt each is, unconditional ones first.

    Attributes:
        items: (rows,) index of the latent.
        prompts: (rows,) index of the prompt's embedding.
        first_conditional: rows before this one are unconditional.
        guidance_scale: None where there is no guidance, and so no unconditional row.
    """

    items: Tensor
    prompts: Tensor
    first_conditional: int
    guidance_scale: float | None

    @classmethod
    def unguided(cls, prompts: Tensor) -> UNetRows:
        items = torch.arange(len(prompts), device=prompts.device)
        return cls(items, prompts, 0, None)

    @classmethod
    def of(cls, prompts: Tensor, negative: Tensor, parameters: EditParameters) -> UNetRows:
        """One row per prompt, and its unconditional twin unless guidance is the identity."""
        if not parameters.is_guided:
            return cls.unguided(prompts)
        count = len(prompts)
        return cls(
            torch.arange(count, device=prompts.device).repeat(2),
            torch.cat([negative.expand(count), prompts]),
            count,
            parameters.guidance_scale,
        )


def own_maps(_first_row: int, _items: Tensor) -> AbstractContextManager[None]:
    """The mode in which no map is recorded or replaced."""
    return nullcontext()


class Denoiser:
    """A checkpoint's UNet with the prompts of one call, open while the call lasts.

    Attributes:
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
        self._text = text
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

    def predict(self, rows: UNetRows, z: Tensor, timestep: int, mode: Mode = own_maps) -> Tensor:
        """The UNet's output for every latent of z, (items, C, h, w), guided if the rows are.

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """

        def evaluate(first: int, last: int) -> Tensor:
            items = rows.items[first:last]
            conditional_from = min(max(rows.first_conditional - first, 0), last - first)
            with mode(conditional_from, items[conditional_from:]):
                return self._run(rows, z, timestep, first, last)

        if len(rows.items) == 0:
            return torch.zeros_like(z)
        output = self._limit.map(len(rows.items), evaluate)
        if rows.guidance_scale is None:
            return output
        unconditional, conditional = output.chunk(2)
        guided: Tensor = unconditional + rows.guidance_scale * (conditional - unconditional)
        return guided

    def record(self, rows: UNetRows, z: Tensor, timestep: int, maps: MapReplacement) -> None:
        """Leaves the rows' maps in `maps` and computes nothing past the last of them.

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """

        def evaluate(first: int, last: int) -> Tensor:
            with maps.recording(first_row=0, only_maps=True):
                self._run(rows, z, timestep, first, last)
            return z[:0]

        self._limit.map(len(rows.items), evaluate)

    def _run(self, rows: UNetRows, z: Tensor, timestep: int, first: int, last: int) -> Tensor:
        sample = z[rows.items[first:last]].to(self._checkpoint.dtype)
        prompts = rows.prompts[first:last]
        with self._text_keys.of_rows(prompts):
            output: Tensor = self._checkpoint.unet(
                sample.contiguous(memory_format=torch.channels_last),
                timestep,
                encoder_hidden_states=self._text.embeddings[prompts],
                return_dict=False,
            )[0]
        return output.to(self.latent_dtype)

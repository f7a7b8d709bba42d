"""The UNet on the rows of a step, in as many chunks as memory requires.

A row is one latent in one call of the UNet. A row that is only evaluated for its attention maps
stops at the last layer that gives one; it is cheaper, but still counts as a row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fpe_core.unet.call import UNetCall
from fpe_core.unet.exchange import Exchange, Inject, Record
from fpe_core.unet.prompts import EncodedPrompts, TextKeys
from fpe_core.unet.regions import RegionSplit
from fpe_core.unet.row_limit import RowLimit
from fpe_core.unet.rows import Chunk, UNetRows


class Denoiser:
    """A UNet with the prompts of one call.

    Attributes:
        text: the prompts, encoded.
    """

    def __init__(
        self, unet: UNetCall, text: EncodedPrompts, limit: RowLimit, latent_dtype: torch.dtype
    ) -> None:
        """`latent_dtype`: the dtype of the outputs, whatever the UNet's own."""
        self.text = text
        self._unet = unet
        self._limit = limit
        self._latent_dtype = latent_dtype
        self._text_keys = TextKeys(
            unet.parts.cross_attentions, text.embeddings, added=unet.embed_beside(text)
        )
        self._of_timestep: dict[int, Tensor] = {}
        self._by_step: tuple[Tensor, Tensor] | None = None

    def change_prompts(self, prompts: Tensor, embeddings: Tensor) -> None:
        """Gives some prompts other embeddings at every step, see `begin`.

        Args:
            prompts: (prompts,) int64, their indices.
            embeddings: (prompts, steps, tokens, width).
        """
        self._by_step = prompts, embeddings

    def begin(self, step: int) -> None:
        """The embeddings of a step, from 0 at the noisy end, for prompts that change."""
        if self._by_step is not None:
            prompts, embeddings = self._by_step
            self._text_keys.put(prompts, embeddings[:, step])

    def prepare(self, rows: Iterable[UNetRows]) -> None:
        """Copies the indices of these rows to the device, so that no step waits for them."""
        for each in rows:
            each.prepare(self._limit.rows)

    def evaluate(
        self,
        rows: UNetRows,
        z: Tensor,
        timestep: int,
        exchange: Record | Inject | RegionSplit | None = None,
    ) -> Tensor:
        """The UNet's output for every row, (rows, C, h, w); empty if they only record.

        Args:
            rows: may be empty.
            z: the latents, (latents, C, h, w).
            timestep: 0..999.
            exchange: what the rows record, or are given, or what splits them; None: nothing.

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """
        if len(rows) == 0:
            return z[:0]
        evaluated: list[int] = []

        def part(first: int, last: int) -> Tensor:
            chunk = rows.chunk(first, last)
            output = self._run(chunk, z, timestep, exchange)
            if output is None:
                return z[:0]
            evaluated.extend(chunk.rows)
            return output.to(self._latent_dtype)

        outputs = self._limit.map(len(rows), part)
        return rows.in_order(outputs, evaluated) if evaluated else outputs

    def _run(
        self,
        chunk: Chunk,
        z: Tensor,
        timestep: int,
        exchange: Record | Inject | RegionSplit | None,
    ) -> Tensor | None:
        """The output of the chunk's rows; None if they only record."""
        if timestep not in self._of_timestep:
            self._of_timestep[timestep] = self._unet.embed(timestep)
        output: Tensor | None
        output, handed = self._unet(
            chunk,
            z[chunk.latents].to(self._unet.dtype),
            self._of_timestep[timestep],
            self._text_keys.of_rows(chunk.prompts),
            Exchange() if exchange is None else exchange.of(chunk, self._text_keys),
        )
        if exchange is not None:
            exchange.keep(handed, chunk)
        return output

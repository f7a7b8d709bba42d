"""The UNet on the rows of a step, in as many chunks as memory requires.

A row is one latent in one call of the UNet. A row that is only evaluated for its attention maps
stops at the last layer that is replaced; it is cheaper, but still counts as a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fpe_core.unet.attention import SourceMaps
from fpe_core.unet.call import UNetCall
from fpe_core.unet.forward import Maps
from fpe_core.unet.prompts import EncodedPrompts, TextKeys
from fpe_core.unet.row_limit import RowLimit
from fpe_core.unet.rows import Chunk, UNetRows


@dataclass(frozen=True, eq=False)
class RecordMaps:
    """The conditional rows are sources, in order; their maps are recorded in `maps`.

    `only`: the output is not needed, and the pass ends with the last map.
    """

    maps: SourceMaps
    only: bool = False

    def of(self, chunk: Chunk) -> Maps:
        return Maps(self.maps.attentions, chunk.first_conditional, only=self.only)


@dataclass(frozen=True, eq=False)
class InjectMaps:
    """The conditional rows attend with the maps of their sources instead of their own.

    `source_of_latent`: (latents,), int64, an index in the order in which `maps` were recorded.
    """

    maps: SourceMaps
    source_of_latent: Tensor

    def of(self, chunk: Chunk) -> Maps:
        if len(chunk.conditional_items) == 0:
            return Maps()
        sources = self.source_of_latent[chunk.conditional_items]
        return Maps(self.maps.attentions, chunk.first_conditional, self.maps.of(sources))


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
        self._text_keys = TextKeys(unet.parts.cross_attentions, text.embeddings)
        self._of_timestep: dict[int, Tensor] = {}

    def prepare(self, rows: Iterable[UNetRows]) -> None:
        """Copies the indices of these rows to the device, so that no step waits for them."""
        for each in rows:
            each.prepare(self._limit.rows)

    def evaluate(
        self,
        rows: UNetRows,
        z: Tensor,
        timestep: int,
        maps: RecordMaps | InjectMaps | None = None,
    ) -> Tensor:
        """The UNet's output for every row, (rows, C, h, w).

        Args:
            rows: may be empty.
            z: the latents, (latents, C, h, w).
            timestep: 0..999.
            maps: whether the rows' attention maps are recorded, or others injected; None: neither.

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """
        if len(rows) == 0:
            return z[:0]
        evaluated: list[int] = []

        def part(first: int, last: int) -> Tensor:
            chunk = rows.chunk(first, last)
            output = self._run(chunk, z, timestep, maps)
            assert output is not None
            evaluated.extend(chunk.rows)
            return output.to(self._latent_dtype)

        return rows.in_order(self._limit.map(len(rows), part), evaluated)

    def record(self, rows: UNetRows, z: Tensor, timestep: int, maps: SourceMaps) -> None:
        """Records the rows' maps in `maps` and computes nothing after the last of them.

        Raises:
            RowsOutOfMemoryError: a single row does not fit.
        """

        def part(first: int, last: int) -> Tensor:
            self._run(rows.chunk(first, last), z, timestep, RecordMaps(maps, only=True))
            return z[:0]

        self._limit.map(len(rows), part)

    def _run(
        self, chunk: Chunk, z: Tensor, timestep: int, maps: RecordMaps | InjectMaps | None
    ) -> Tensor | None:
        """The output of the chunk's rows; None if only their maps are recorded."""
        if timestep not in self._of_timestep:
            self._of_timestep[timestep] = self._unet.embed(timestep)
        output: Tensor | None
        output, made = self._unet(
            chunk,
            z[chunk.latents].to(self._unet.dtype),
            self._of_timestep[timestep],
            self._text_keys.of_rows(chunk.prompts),
            Maps() if maps is None else maps.of(chunk),
        )
        if isinstance(maps, RecordMaps):
            maps.maps.record(made)
        return output

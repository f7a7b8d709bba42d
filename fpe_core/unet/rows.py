"""Which UNet rows a step takes: one latent with one prompt each.

The rows' indices are copied to the device before the first step, so that no step waits for a copy.
Others are only made after running out of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows that go through the UNet together, unconditional ones first.

    Attributes:
        rows: (rows,) their indices among all rows.
        latents: (latents,) indices of their distinct latents.
        latent_of_row: (rows,) index into `latents`; None if every row has its own latent, in order.
        prompts: (rows,) index of the prompt's embedding.
        first_conditional: rows before this one are unconditional.
        items: (rows,) indices of the rows' latents among those of all rows.
        edits: (conditional rows,) the numbers of the conditional rows among all conditional ones.
    """

    rows: tuple[int, ...]
    latents: Tensor
    latent_of_row: Tensor | None
    prompts: Tensor
    first_conditional: int
    items: Tensor
    edits: Tensor


@dataclass(frozen=True, eq=False)
class UNetRows:
    """The UNet rows of one step: which latent and which prompt each is, unconditional ones first.

    Attributes:
        items: per row, the index of its latent.
        prompts: per row, the index of its prompt's embedding.
        first_conditional: rows before this one are unconditional.
        guidance_scale: None if there is no guidance, and so no unconditional row.
        device: where the chunks' indices are kept.
        unconditional_of: (conditional rows,), int64, the unconditional row that guides each of
            them; None if each has its own, in order.
        image_scale: of the guidance by the image that a UNet sees, see `guided_by_image`; None
            without it.
    """

    items: tuple[int, ...]
    prompts: tuple[int, ...]
    first_conditional: int
    guidance_scale: float | None
    device: torch.device
    unconditional_of: Tensor | None = None
    image_scale: float | None = None
    _chunks: dict[tuple[int, int], Chunk] = field(init=False, default_factory=dict, repr=False)
    _orders: dict[tuple[int, ...], Tensor] = field(init=False, default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def unguided(cls, prompts: Sequence[int], device: torch.device) -> UNetRows:
        """One row for each prompt, and for each latent."""
        return cls(tuple(range(len(prompts))), tuple(prompts), 0, None, device)

    @classmethod
    def guided(
        cls,
        prompts: Sequence[int],
        negatives: Sequence[int],
        scale: float,
        device: torch.device,
    ) -> UNetRows:
        """An unconditional row with its prompt of `negatives` for each latent, then as
        `unguided`."""
        count = len(prompts)
        return cls(tuple(range(count)) * 2, (*negatives, *prompts), count, scale, device)

    @classmethod
    def guided_by_image(
        cls,
        prompts: Sequence[int],
        negatives: Sequence[int],
        scale: float,
        image_scale: float,
        device: torch.device,
    ) -> UNetRows:
        """Three rows for each latent that is there with an image and, `count` further, without one:
        negative prompt without and with the image, and the prompt with it."""
        count = len(prompts)
        with_image = tuple(range(count))
        return cls(
            (*(count + n for n in with_image), *with_image, *with_image),
            (*negatives, *negatives, *prompts),
            2 * count,
            scale,
            device,
            image_scale=image_scale,
        )

    def chunk(self, first: int, last: int) -> Chunk:
        """Rows `first` to `last` in an order that keeps the rows of a latent together.

        Cached, so that a step copies no index to the device.
        """
        if (first, last) not in self._chunks:
            self._chunks[first, last] = self._chunk(first, last)
        return self._chunks[first, last]

    @cached_property
    def _by_latent(self) -> list[int]:
        """All rows, those of a latent next to each other."""
        return sorted(range(len(self)), key=lambda row: (self.items[row], row))

    def _chunk(self, first: int, last: int) -> Chunk:
        rows = sorted(self._by_latent[first:last])
        items = [self.items[row] for row in rows]
        latents = list(dict.fromkeys(items))
        place = {latent: number for number, latent in enumerate(latents)}
        conditional_from = sum(row < self.first_conditional for row in rows)
        return Chunk(
            tuple(rows),
            self._index(latents),
            None if latents == items else self._index([place[item] for item in items]),
            self._index([self.prompts[row] for row in rows]),
            conditional_from,
            self._index(items),
            self._index([row - self.first_conditional for row in rows[conditional_from:]]),
        )

    def prepare(self, limit: int) -> None:
        """Makes the indices of all chunks of at most `limit` rows."""
        edges = [*range(0, len(self), limit), len(self)]
        self._order(
            [row for first, last in pairwise(edges) for row in self.chunk(first, last).rows]
        )

    def in_order(self, outputs: Tensor, rows: Sequence[int]) -> Tensor:
        """Puts the outputs of `rows`, evaluated chunk by chunk, into the rows' own order."""
        order = self._order(rows)
        return outputs if order is None else outputs[order]

    def _order(self, rows: Sequence[int]) -> Tensor | None:
        evaluated = tuple(rows)
        if evaluated == tuple(range(len(self))):
            return None
        if evaluated not in self._orders:
            place = {row: number for number, row in enumerate(evaluated)}
            self._orders[evaluated] = self._index([place[row] for row in range(len(self))])
        return self._orders[evaluated]

    def guide(self, outputs: Tensor, shrink: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The rows' outputs, (rows, C, h, w), combined into one for every conditional row.

        Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6, as scale 1 + w);
        without guidance the outputs are returned unchanged. With guidance by an image it is
        InstructPix2Pix's (Brooks et al. 2023, arXiv 2211.09800, eq. 3).

        `shrink`: what is done to the differences of the predictions first; None: nothing.
        """
        if self.guidance_scale is None:
            return outputs
        if self.image_scale is not None:
            neither, image, both = outputs.chunk(3)
            return (
                neither
                + self.guidance_scale * (both - image)
                + self.image_scale * (image - neither)
            )
        unconditional = outputs[: self.first_conditional]
        conditional = outputs[self.first_conditional :]
        if self.unconditional_of is not None:
            unconditional = unconditional[self.unconditional_of]
        difference = conditional - unconditional
        if shrink is not None:
            difference = shrink(difference)
        return unconditional + self.guidance_scale * difference

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

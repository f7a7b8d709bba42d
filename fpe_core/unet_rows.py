"""Which UNet rows a step takes: one latent with one prompt each.

Their indices are put onto the device before the first step, so that no step waits for one; only
after running out of memory others are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from fpe_core.inversion import Inversion, Sources
from fpe_core.parameters import EditParameters
from fpe_core.text import EncodedPrompts


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows that go through the UNet together, unconditional ones first.

    Attributes:
        rows: (rows,) where they are among all rows.
        latents: (latents,) the distinct latents that they have.
        latent_of_row: (rows,) index of `latents`; None where every row has its own, in order.
        prompts: (rows,) index of the prompt's embedding.
        first_conditional: rows before this one are unconditional.
        conditional_items: the latents of the conditional rows.
        wanted: (wanted rows,) those that are not there to fill up; None if all are wanted.
        is_fitted: whether it has a shape that is compiled for.
    """

    rows: tuple[int, ...]
    latents: Tensor
    latent_of_row: Tensor | None
    prompts: Tensor
    first_conditional: int
    conditional_items: Tensor
    wanted: Tensor | None = None
    is_fitted: bool = False
    _filled: dict[tuple[int, int, int], Chunk] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of latents, of unconditional and of conditional rows."""
        conditional = len(self.prompts) - self.first_conditional
        return len(self.latents), self.first_conditional, conditional

    def filled_up(self, latents: int, unconditional: int, conditional: int) -> Chunk:
        """With copies of its own latents and rows, so that there are so many of each.

        Made once for a shape: a step copies no index to the device.
        """
        shape = latents, unconditional, conditional
        if shape not in self._filled:
            self._filled[shape] = self._filled_up(*shape)
        return self._filled[shape]

    def _filled_up(self, latents: int, unconditional: int, conditional: int) -> Chunk:
        if (latents, unconditional, conditional) == self.shape:
            return replace(self, is_fitted=True)
        has_latents, first, has_conditional = self.shape
        rows = [
            *_repeating_last(range(first), unconditional),
            *_repeating_last(range(first, first + has_conditional), conditional),
        ]
        wanted = [*range(first), *range(unconditional, unconditional + has_conditional)]
        where = self.prompts.device
        of_rows = torch.tensor(rows, device=where)
        of_latents = torch.tensor(_repeating_last(range(has_latents), latents), device=where)
        of_items = torch.tensor(_repeating_last(range(has_conditional), conditional), device=where)
        return Chunk(
            self.rows,
            self.latents[of_latents],
            None if self.latent_of_row is None else self.latent_of_row[of_rows],
            self.prompts[of_rows],
            unconditional,
            self.conditional_items[of_items.long()],
            torch.tensor(wanted, device=where),
            is_fitted=True,
        )


@dataclass(frozen=True, eq=False)
class UNetRows:
    """The UNet rows of one step: which latent and which prompt each is, unconditional ones first.

    Attributes:
        items: per row, the index of its latent.
        prompts: per row, the index of its prompt's embedding.
        first_conditional: rows before this one are unconditional.
        guidance_scale: None where there is no guidance, and so no unconditional row.
        device: where the chunks' indices are wanted.
    """

    items: tuple[int, ...]
    prompts: tuple[int, ...]
    first_conditional: int
    guidance_scale: float | None
    device: torch.device
    _chunks: dict[tuple[int, int], Chunk] = field(default_factory=dict, repr=False)
    _orders: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def unguided(cls, prompts: Sequence[int], device: torch.device) -> UNetRows:
        """One row for each prompt, and for each latent."""
        return cls(tuple(range(len(prompts))), tuple(prompts), 0, None, device)

    @classmethod
    def of(
        cls,
        prompts: Sequence[int],
        negative: int,
        parameters: EditParameters,
        device: torch.device,
    ) -> UNetRows:
        """One row per prompt, and its unconditional twin unless guidance is the identity."""
        if not parameters.guided_steps:
            return cls.unguided(prompts, device)
        count = len(prompts)
        return cls(
            tuple(range(count)) * 2,
            (negative,) * count + tuple(prompts),
            count,
            parameters.guidance_scale,
            device,
        )

    def chunk(self, first: int, last: int) -> Chunk:
        """`first` to `last` of the rows in an order in which those of a latent are neighbours.

        Made once: a step copies no index to the device.
        """
        if (first, last) not in self._chunks:
            self._chunks[first, last] = self._chunk(first, last)
        return self._chunks[first, last]

    def _chunk(self, first: int, last: int) -> Chunk:
        by_latent = sorted(range(len(self)), key=lambda row: (self.items[row], row))
        rows = sorted(by_latent[first:last])
        items = [self.items[row] for row in rows]
        latents = list(dict.fromkeys(items))
        conditional_from = sum(row < self.first_conditional for row in rows)
        return Chunk(
            tuple(rows),
            self._index(latents),
            None if latents == items else self._index([latents.index(item) for item in items]),
            self._index([self.prompts[row] for row in rows]),
            conditional_from,
            self._index(items[conditional_from:]),
        )

    def prepare(self, limit: int) -> None:
        """Makes the indices of all chunks of at most `limit` rows."""
        edges = [*range(0, len(self), limit), len(self)]
        self._order(
            [row for first, last in pairwise(edges) for row in self.chunk(first, last).rows]
        )

    def in_order(self, outputs: Tensor, rows: Sequence[int]) -> Tensor:
        """Outputs of rows that came chunk by chunk, brought into the rows' own order."""
        order = self._order(rows)
        return outputs if order is None else outputs[order]

    def _order(self, rows: Sequence[int]) -> Tensor | None:
        came = tuple(rows)
        if came == tuple(range(len(self))):
            return None
        if came not in self._orders:
            self._orders[came] = self._index([came.index(row) for row in range(len(self))])
        return self._orders[came]

    def guide(self, outputs: Tensor) -> Tensor:
        """The rows' outputs, (rows, C, h, w), to one for every latent, guided if the rows are."""
        if self.guidance_scale is None:
            return outputs
        unconditional = outputs[: self.first_conditional]
        conditional = outputs[self.first_conditional :]
        return _guided(unconditional, conditional, self.guidance_scale)

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


@dataclass(frozen=True)
class FirstStep:
    """The rows of the first step, where all edits of a source start at the same latent.

    Their unconditional rows are one row there, and that is the source's own where it has one: the
    unconditional row of a synthetic source, or the row of a real one that was inverted with the
    negative prompt.

    Attributes:
        rows: what is left to evaluate: an unconditional row for each source that has no such row of
            its own, then the conditional rows of all edits.
        lends: whether any source's row stands in for that of its edits.
        unconditional: (edits,) for each edit its unconditional row, counted through the sources'
            rows, if they lend, and then `rows`.
    """

    rows: UNetRows
    lends: bool
    unconditional: Tensor

    def guide(self, source_outputs: Tensor, outputs: Tensor) -> Tensor:
        """Outputs of the sources' rows (none where none is lent) and of `rows` to the edits'."""
        assert self.rows.guidance_scale is not None
        unconditional = torch.cat([source_outputs, outputs])[self.unconditional]
        conditional = outputs[self.rows.first_conditional :]
        return _guided(unconditional, conditional, self.rows.guidance_scale)


@dataclass(frozen=True)
class EditRows:
    """The rows of an edit call.

    Attributes:
        source: of the sources, at every step that evaluates them and, if synthetic, is guided.
        target: of the edits, at every guided step but the first.
        unguided_source, unguided_target: of both at the steps outside the guidance interval.
        first: of the edits at the first step; None where that is not guided and like all others.
        guided_steps: from 0 at the noisy end.
        source_of_edit: (edits,) index of each edit's source.
    """

    source: UNetRows
    target: UNetRows
    unguided_source: UNetRows
    unguided_target: UNetRows
    first: FirstStep | None
    guided_steps: range
    source_of_edit: Tensor

    def all(self) -> tuple[UNetRows, ...]:
        """Of all steps."""
        first = () if self.first is None else (self.first.rows,)
        return self.source, self.target, self.unguided_source, self.unguided_target, *first

    def at(self, step: int) -> tuple[UNetRows, UNetRows]:
        """Of the sources and of the edits, at a step that is not the first of a guided edit."""
        if step in self.guided_steps:
            return self.source, self.target
        return self.unguided_source, self.unguided_target

    @classmethod
    def of(
        cls,
        sources: Sources,
        target_prompts: Sequence[Sequence[str]],
        parameters: EditParameters,
        text: EncodedPrompts,
        *,
        replaces: bool,
    ) -> EditRows:
        """`replaces`: whether the first step replaces maps, so that real sources have a row."""
        device = text.embeddings.device
        negative = text.index[parameters.negative_prompt]
        source_text = [text.index[prompt] for prompt in sources.source_prompts]
        target_text = [text.index[p] for prompts in target_prompts for p in prompts]
        source_of_edit = [s for s, prompts in enumerate(target_prompts) for _ in prompts]
        if isinstance(sources, Inversion):
            source = UNetRows.unguided(source_text, device)
            lenders = [
                s
                for s, prompt in enumerate(sources.source_prompts)
                if replaces and prompt == parameters.negative_prompt
            ]
        else:
            source = UNetRows.of(source_text, negative, parameters, device)
            lenders = list(range(len(sources)))
        target = UNetRows.of(target_text, negative, parameters, device)
        first = None
        if 0 in parameters.guided_steps:
            lent = {s: s for s in lenders}  # unconditional rows come first, in order of sources
            first = _first_step(source, target, source_of_edit, lent)
        return cls(
            source,
            target,
            UNetRows.unguided(source_text, device),
            UNetRows.unguided(target_text, device),
            first,
            parameters.guided_steps,
            torch.tensor(source_of_edit, device=device).long(),
        )


def _first_step(
    source: UNetRows, target: UNetRows, source_of_edit: Sequence[int], lent: Mapping[int, int]
) -> FirstStep:
    """`lent`: source to the row of `source` that stands in for its edits' unconditional one."""
    first_edit: dict[int, int] = {}
    for edit, s in enumerate(source_of_edit):
        first_edit.setdefault(s, edit)
    unlent = [s for s in first_edit if s not in lent]
    source_rows = len(source) if lent else 0
    place = {**lent, **{s: source_rows + row for row, s in enumerate(unlent)}}
    # One latent for all edits of a source, that of the first: so they share what they can.
    items = [first_edit[s] for s in (*unlent, *source_of_edit)]
    prompts = (*target.prompts[: len(unlent)], *target.prompts[target.first_conditional :])
    rows = UNetRows(tuple(items), prompts, len(unlent), target.guidance_scale, target.device)
    unconditional = torch.tensor([place[s] for s in source_of_edit], device=target.device).long()
    return FirstStep(rows, bool(lent), unconditional)


def _guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6, as scale 1 + w)."""
    guided: Tensor = unconditional + scale * (conditional - unconditional)
    return guided


def _repeating_last(indices: range, count: int) -> list[int]:
    """So many of them, the last again and again."""
    return [*indices, *(list(indices[-1:]) * (count - len(indices)))]

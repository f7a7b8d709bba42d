"""Which UNet rows a step takes: one latent with one prompt each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpe_core.inversion import Inversion, Sources
from fpe_core.parameters import EditParameters
from fpe_core.text import EncodedPrompts


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

    def __len__(self) -> int:
        return len(self.items)

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

    def guide(self, outputs: Tensor) -> Tensor:
        """The rows' outputs, (rows, C, h, w), to one for every latent, guided if the rows are."""
        if self.guidance_scale is None:
            return outputs
        unconditional = outputs[: self.first_conditional]
        conditional = outputs[self.first_conditional :]
        return _guided(unconditional, conditional, self.guidance_scale)


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
        source: of the sources, at every step that evaluates them.
        target: of the edits, at every step but the first.
        first: of the edits at the first step; None without guidance, where it is like all others.
        source_of_edit: (edits,) index of each edit's source.
    """

    source: UNetRows
    target: UNetRows
    first: FirstStep | None
    source_of_edit: Tensor

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
        negative = text.rows([parameters.negative_prompt])
        source_text = text.rows(sources.source_prompts)
        target_text = text.rows([p for prompts in target_prompts for p in prompts])
        source_of_edit = [s for s, prompts in enumerate(target_prompts) for _ in prompts]
        if isinstance(sources, Inversion):
            source = UNetRows.unguided(source_text)
            lenders = [
                s
                for s, prompt in enumerate(sources.source_prompts)
                if replaces and prompt == parameters.negative_prompt
            ]
        else:
            source = UNetRows.of(source_text, negative, parameters)
            lenders = list(range(len(sources)))
        target = UNetRows.of(target_text, negative, parameters)
        first = None
        if parameters.is_guided:
            lent = {s: s for s in lenders}  # unconditional rows come first, in order of sources
            first = _first_step(source, target, source_of_edit, lent)
        device = target_text.device
        return cls(source, target, first, torch.tensor(source_of_edit, device=device).long())


def _first_step(
    source: UNetRows, target: UNetRows, source_of_edit: Sequence[int], lent: Mapping[int, int]
) -> FirstStep:
    """`lent`: source to the row of `source` that stands in for its edits' unconditional one."""
    device = target.items.device
    first_edit: dict[int, int] = {}
    for edit, s in enumerate(source_of_edit):
        first_edit.setdefault(s, edit)
    unlent = [s for s in first_edit if s not in lent]
    source_rows = len(source) if lent else 0
    place = {**lent, **{s: source_rows + row for row, s in enumerate(unlent)}}
    # The unconditional twins of the edits come first in `target`, in order of edits.
    kept = [first_edit[s] for s in unlent] + list(range(target.first_conditional, len(target)))
    index = torch.tensor(kept, device=device).long()
    rows = UNetRows(target.items[index], target.prompts[index], len(unlent), target.guidance_scale)
    unconditional = torch.tensor([place[s] for s in source_of_edit], device=device).long()
    return FirstStep(rows, bool(lent), unconditional)


def _guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6, as scale 1 + w)."""
    guided: Tensor = unconditional + scale * (conditional - unconditional)
    return guided

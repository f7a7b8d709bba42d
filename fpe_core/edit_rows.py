"""Which UNet rows the edits of a group have at each step, and how their outputs are guided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpe_core.inversion import Inversion, Sources
from fpe_core.parameters import EditParameters
from fpe_core.unet.prompts import EncodedPrompts
from fpe_core.unet.rows import UNetRows, _guided


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

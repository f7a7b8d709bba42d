"""Which UNet rows the edits of some sources have at each step, and how their outputs are guided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fpe_core.inversion import Inversion, Sources
from fpe_core.parameters import EditParameters
from fpe_core.unet.prompts import EncodedPrompts
from fpe_core.unet.rows import UNetRows


class StepRows(NamedTuple):
    """The rows of one step: of the sources, and of their edits."""

    source: UNetRows
    edit: UNetRows


@dataclass(frozen=True)
class EditRows:
    """The rows of an edit call, by step.

    Attributes:
        source_of_edit: (edits,), int64, each edit's source.
        guided_steps: numbers of the guided steps, from 0 at the noisy end.
        first, guided, unguided: rows of the first step if it is guided, of all other guided steps,
            and of the steps outside the guidance interval.
    """

    source_of_edit: Tensor
    guided_steps: range
    first: StepRows
    guided: StepRows
    unguided: StepRows

    def at(self, step: int) -> StepRows:
        """The rows of a step, counted from 0 at the noisy end."""
        if step not in self.guided_steps:
            return self.unguided
        return self.first if step == 0 else self.guided

    @classmethod
    def of(
        cls,
        sources: Sources,
        target_prompts: Sequence[Sequence[str]],
        parameters: EditParameters,
        text: EncodedPrompts,
    ) -> EditRows:
        """
        Args:
            sources: S of them.
            target_prompts: per source, the prompts of its edits.
            text: all prompts, the negative one included.
        """
        device, negative = text.embeddings.device, text.index[parameters.negative_prompt]
        scale = parameters.guidance_scale
        source_of_edit = [s for s, prompts in enumerate(target_prompts) for _ in prompts]
        source_text = [text.index[prompt] for prompt in sources.source_prompts]
        target_text = [text.index[p] for prompts in target_prompts for p in prompts]
        unguided = StepRows(
            UNetRows.unguided(source_text, device), UNetRows.unguided(target_text, device)
        )
        guided = StepRows(
            unguided.source  # a real source's rows only give maps, without guidance
            if isinstance(sources, Inversion)
            else UNetRows.guided(source_text, negative, scale, device),
            UNetRows.guided(target_text, negative, scale, device),
        )
        return cls(
            source_of_edit=torch.tensor(source_of_edit, dtype=torch.int64, device=device),
            guided_steps=parameters.guided_steps,
            first=guided._replace(edit=_sharing_unconditional(guided.edit, source_of_edit)),
            guided=guided,
            unguided=unguided,
        )


def _sharing_unconditional(edit: UNetRows, source_of_edit: Sequence[int]) -> UNetRows:
    """The rows of the first step, with one unconditional row for all edits of a source.

    At the first step all edits of a source have the same latent, and the negative prompt is the
    same for all edits, so one output serves them all. Their conditional rows refer to that one
    latent too, so that whatever depends on the latent alone is computed once.
    """
    first_edit: dict[int, int] = {}
    for place, source in enumerate(source_of_edit):
        first_edit.setdefault(source, place)
    sources = {source: number for number, source in enumerate(first_edit)}
    return replace(
        edit,
        items=tuple(first_edit[s] for s in (*sources, *source_of_edit)),
        prompts=(*edit.prompts[: len(sources)], *edit.prompts[edit.first_conditional :]),
        first_conditional=len(sources),
        unconditional_of=torch.tensor(
            [sources[s] for s in source_of_edit], dtype=torch.int64, device=edit.device
        ),
    )

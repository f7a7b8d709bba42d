"""Which UNet rows the edits of some sources have at each step, and what they hand over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fpe_core.edit_words import EditWords
from fpe_core.errors import ParameterError
from fpe_core.injection import CONDITIONAL, EditRule, Injection, ResidualInjection, WordMask
from fpe_core.inversion import Inversion, Sources
from fpe_core.parameters import EditParameters
from fpe_core.row_formulas import (
    guided_steps,
    lends_first_row,
    rows_when_guided,
    shares_first_step,
    source_prompts_of,
    source_rows_at,
    unconditional_prompt,
)
from fpe_core.unet.attention import SelfAttentionLayer, select_layers
from fpe_core.unet.exchange import (
    Inject,
    Record,
    Recorded,
    Site,
    Taker,
)
from fpe_core.unet.parts import UNetParts
from fpe_core.unet.prompts import EncodedPrompts
from fpe_core.unet.regions import RegionSplit
from fpe_core.unet.rows import UNetRows


class AskedEdit(NamedTuple):
    """An edit of a call: the number of its source, and its prompt."""

    source: int
    target_prompt: str


@dataclass(frozen=True)
class StepRows:
    """The rows of one step.

    Attributes:
        source: rows of the sources; empty if they give nothing.
        edit: rows of the edits that are evaluated.
        record, inject: what the first hand over to the second, or what splits the attention of the
            second; None: nothing.
        guiding: the rows that guidance combines: `edit`, behind the unconditional rows that the
            sources lend.
        lent: (rows,), int64, which of the sources' rows these are; None: they lend none.
    """

    source: UNetRows
    edit: UNetRows
    record: Record | None
    inject: Inject | RegionSplit | None
    guiding: UNetRows
    lent: Tensor | None

    @property
    def columns(self) -> list[tuple[Tensor, Tensor]]:
        """What was seen of the edits' words in this step's maps, see `Inject.columns`."""
        return self.inject.columns if isinstance(self.inject, Inject) else []

    def guide(
        self,
        output: Tensor,
        of_sources: Tensor,
        shrink: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The outputs of `edit`, with those of the sources where they lend, guided.

        `shrink`: see `UNetRows.guide`.
        """
        if self.lent is not None:
            output = torch.cat([of_sources[self.lent], output])
        return self.guiding.guide(output, shrink)


class RuleSites:
    """The attentions and residual blocks that a rule names in one UNet, at one size."""

    def __init__(
        self, rule: EditRule, layers: tuple[SelfAttentionLayer, ...], parts: UNetParts
    ) -> None:
        """Raises ParameterError for layers that the UNet does not have."""
        self.rule = rule
        self._attentions = {
            each: tuple(
                layer.attention if each.attention == "self" else layer.cross_attention
                for layer in select_layers(layers, each.layers)
            )
            for each in rule.injections
        }
        self._resnets = {
            each: tuple(sorted({parts.resnet_before(layer.position) for layer in chosen}))
            for each in rule.residuals
            for chosen in [select_layers(layers, each.layers)]
        }
        self.words: tuple[int, ...] = ()
        if rule.blend is not None and isinstance(rule.blend.mask, WordMask):
            level = rule.blend.mask.level
            self.words = tuple(each.cross_attention for each in layers if each.level == level)
            if not self.words:
                there = sorted({each.level for each in layers})
                raise ParameterError(
                    f"no attention of this checkpoint is at level {level} of the latent grid, "
                    f"where the words' maps are taken; it has levels {', '.join(map(str, there))}"
                )

    def attentions_at(self, step: int, steps: int) -> dict[int, Injection]:
        """Those that take something at a step, in order, with the injection that says what."""
        found: dict[int, Injection] = {}
        for injection, attentions in self._attentions.items():
            if step not in injection.steps_of(steps):
                continue
            if twice := sorted(set(attentions) & set(found)):
                raise ParameterError(
                    f"two injections at attention {twice[0]} in step {step}; a rule gives each "
                    "attention one at a time"
                )
            found.update(dict.fromkeys(attentions, injection))
        return dict(sorted(found.items()))

    def resnets_at(self, step: int, steps: int) -> dict[int, ResidualInjection]:
        """Likewise of residual blocks."""
        return dict(
            sorted(
                (number, residual)
                for residual, numbers in self._resnets.items()
                if step in residual.steps_of(steps)
                for number in numbers
            )
        )


class EditRows:
    """The rows of an edit call, by step.

    Attributes:
        source_of_edit: (edits,), int64, each edit's source.
    """

    def __init__(
        self,
        sources: Sources,
        asked: Sequence[AskedEdit],
        parameters: EditParameters,
        sites: RuleSites,
        *,
        text: EncodedPrompts,
        words: EditWords | None = None,
        regions: RegionSplit | None = None,
    ) -> None:
        """
        Args:
            sources: S of them.
            asked: the edits, source by source.
            sites: of the edits' rule.
            text: all prompts, the negative one included.
            words: of the edits, if the rule mixes words.
            regions: of the edits, if their masks split attention; nothing is handed over then.
        """
        self._device = text.embeddings.device
        self._parameters, self._sites, self._text = parameters, sites, text
        self._words, self._regions = words, regions
        self._is_real = isinstance(sources, Inversion)
        self._source_of_edit = [edit.source for edit in asked]
        self.source_of_edit = self._index(self._source_of_edit)
        self._recorded = Recorded()
        self._source_prompts, self._sizes = sources.source_prompts, sources.sizes
        self._negatives = [
            unconditional_prompt(parameters, prompt, number)
            for number, prompt in enumerate(sources.source_prompts)
        ]
        self._targets = [text.of(edit.target_prompt, self._sizes[edit.source]) for edit in asked]
        self._made: dict[object, StepRows] = {}
        self._steps: dict[int, StepRows] = {}
        self._rows: dict[bool, UNetRows] = {}

    def at(self, step: int) -> StepRows:
        """The rows of a step, counted from 0 at the noisy end."""
        if step not in self._steps:
            steps, rule = self._parameters.steps, self._sites.rule
            taken = self._sites.attentions_at(step, steps) if self._targets else {}
            residuals = self._sites.resnets_at(step, steps) if self._targets else {}
            guided = step in guided_steps(rule, self._parameters)
            first = step == steps - rule.start.sampled_steps(steps)
            key = (tuple(taken.items()), tuple(residuals.items()), guided, first)
            if key not in self._made:
                kinds = source_rows_at(rule, step, steps)
                self._made[key] = self._of(taken, residuals, kinds, guided=guided, first=first)
            self._steps[step] = self._made[key]
        return self._steps[step]

    def clear(self) -> None:
        """Drops what the sources handed over, before those of the next step do."""
        self._recorded.clear()

    def _of(
        self,
        taken: Mapping[int, Injection],
        residuals: Mapping[int, ResidualInjection],
        kinds: frozenset[str],
        *,
        guided: bool,
        first: bool,
    ) -> StepRows:
        takes: dict[int, set[str]] = defaultdict(set)
        for attention, injection in taken.items():
            takes[attention] |= set(injection.takes)
        for attention in self._sites.words if self._targets else ():
            takes[attention] |= {"q", "k"}
        gives = bool(takes or residuals)
        source, givers = self._source_rows(kinds if gives else frozenset(), guided)
        edit = self._edit_rows(guided)
        guiding, lent = edit, None
        if first and guided and shares_first_step(self._sites.rule):
            guiding = edit = self._sharing_unconditional(edit)
            if gives and self._is_real and lends_first_row(self._sites.rule, self._parameters):
                with_edits = list(dict.fromkeys(self._source_of_edit))
                lent = self._index([givers[CONDITIONAL][s] for s in with_edits])
                edit = replace(
                    guiding,
                    items=guiding.items[guiding.first_conditional :],
                    prompts=guiding.prompts[guiding.first_conditional :],
                    first_conditional=0,
                    guidance_scale=None,
                    unconditional_of=None,
                )
        record = inject = None
        if gives:
            sites = tuple(
                Site(attention, "".join(sorted(takes[attention], key="qkv".index)))
                for attention in sorted(takes)
            )
            only = self._is_real and lent is None
            record = Record(self._recorded, sites, tuple(residuals), only)
            inject = self._inject(record, taken, residuals, givers)
        return StepRows(source, edit, record, inject or self._regions, guiding, lent)

    def _inject(
        self,
        record: Record,
        taken: Mapping[int, Injection],
        residuals: Mapping[int, ResidualInjection],
        givers: Mapping[str, Sequence[int]],
    ) -> Inject:
        takers: dict[tuple[str, str | None], Taker] = {}

        def taker(of: Injection | ResidualInjection) -> Taker:
            kinds = of.conditional, of.unconditional
            if kinds not in takers:
                takers[kinds] = Taker(
                    rows_of(of.conditional),
                    None if of.unconditional is None else rows_of(of.unconditional),
                )
            return takers[kinds]

        def rows_of(kind: str) -> Tensor:
            return self._index([givers[kind][s] for s in self._source_of_edit])

        wanted = None
        if self._words is not None:
            mixes = any(each.mixes_words for each in taken.values())
            wanted = self._words.while_mixed if mixes else self._words.afterwards
        return Inject(
            self._recorded,
            places={site.attention: place for place, site in enumerate(record.sites)},
            resnet_places={number: place for place, number in enumerate(record.resnets)},
            sites=tuple(
                (Site(attention, each.takes, 0, each.appends, each.mixes_words), taker(each))
                for attention, each in taken.items()
            ),
            resnets=tuple((number, taker(each)) for number, each in residuals.items()),
            mixtures=None if self._words is None else self._words.mixtures,
            words=wanted,
            giver=None if wanted is None else rows_of(CONDITIONAL),
        )

    def _source_rows(
        self, kinds: frozenset[str], guided: bool
    ) -> tuple[UNetRows, dict[str, list[int]]]:
        """The sources' rows, and which of the recorded ones is each kind's, source by source."""
        count = len(self._source_prompts)
        if not self._is_real:
            return self._synthetic_rows(guided), {CONDITIONAL: list(range(count))}
        items: list[int] = []
        prompts: list[int] = []
        givers: dict[str, list[int]] = {kind: [] for kind in kinds}
        for s, (own, negative) in enumerate(
            zip(self._source_prompts, self._negatives, strict=True)
        ):
            row_of: dict[str, int] = {}
            for kind, prompt in source_prompts_of(kinds, own, negative).items():
                if prompt not in row_of:
                    row_of[prompt] = len(items)
                    items.append(s)
                    prompts.append(self._text.of(prompt, self._sizes[s]))
                givers[kind].append(row_of[prompt])
        return UNetRows(tuple(items), tuple(prompts), 0, None, self._device), givers

    def _synthetic_rows(self, guided: bool) -> UNetRows:
        own = self._of_sources(self._source_prompts)
        if not guided:
            return UNetRows.unguided(own, self._device)
        negatives = self._of_sources(self._negatives)
        scale = self._parameters.guidance_scale
        return UNetRows.guided(own, negatives, scale, self._device)

    def _of_sources(self, prompts: Sequence[str]) -> list[int]:
        """The embeddings of a prompt of each source."""
        return [self._text.of(*each) for each in zip(prompts, self._sizes, strict=True)]

    def _edit_rows(self, guided: bool) -> UNetRows:
        if guided not in self._rows:
            of_sources = self._of_sources(self._negatives)
            negatives = [of_sources[s] for s in self._source_of_edit]
            scale, rule = self._parameters.guidance_scale, self._sites.rule
            if not guided:
                rows = UNetRows.unguided(self._targets, self._device)
            elif rule.image_guidance is not None and rows_when_guided(rule) == 3:
                image_scale = rule.image_guidance
                rows = UNetRows.guided_by_image(
                    self._targets, negatives, scale, image_scale, self._device
                )
            else:
                rows = UNetRows.guided(self._targets, negatives, scale, self._device)
            self._rows[guided] = rows
        return self._rows[guided]

    def _sharing_unconditional(self, edit: UNetRows) -> UNetRows:
        """The rows of the first step, with one unconditional row for all edits of a source.

        All edits of a source then have the same latent and the same negative prompt, and take the
        same, so one output serves them all. Their conditional rows refer to that one latent too, so
        that whatever depends on the latent alone is computed once.
        """
        of_edit = self._source_of_edit
        first_edit: dict[int, int] = {}
        for place, source in enumerate(of_edit):
            first_edit.setdefault(source, place)
        sources = {source: number for number, source in enumerate(first_edit)}
        return replace(
            edit,
            items=tuple(first_edit[s] for s in (*sources, *of_edit)),
            prompts=(
                *(edit.prompts[first_edit[s]] for s in sources),
                *edit.prompts[edit.first_conditional :],
            ),
            first_conditional=len(sources),
            unconditional_of=self._index([sources[s] for s in of_edit]),
        )

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

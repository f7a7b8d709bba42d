"""What the cost of a group depends on: the number of UNet rows for its source and its edits.

    inversion   of a real source: one row per step
    source      the source next to its edits: a real one at the steps that replace maps, a synthetic
                one at all steps; again in every call that its edits take (`editor_calls`)
    edit        the edits

Groups of the same shape cost the same; a job of millions has a handful of shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle, islice

import numpy as np

from fpe_core import EditInputs, EditParameters, RegionPrompts
from fpe_core.editors.region_prompts import inversion_key
from fpe_core.row_formulas import RowCounts, row_counts
from pipeline.editor_calls import call_by_call, calls_of_source, edits_per_call


@dataclass(frozen=True)
class GroupShape:
    """A source with its edits, as far as its cost depends on it: T steps, of which R replace maps
    and G are guided (all or none, except with `EditParameters.guidance_interval`), and N edits.

    `replaced_fraction`: gives R. Rounded to three decimals, so that there are few shapes even if
    every row of the manifest has its own value.
    """

    steps: int
    replaced_steps: int
    replaced_fraction: float
    guided_steps: int
    guides_first: bool
    width_px: int
    height_px: int
    edits: int
    is_synthetic: bool = False

    @classmethod
    def of(
        cls,
        parameters: EditParameters,
        edits: int,
        *,
        synthetic: bool,
    ) -> GroupShape:
        return cls(
            steps=parameters.steps,
            replaced_steps=parameters.replaced_steps,
            replaced_fraction=round(parameters.replaced_fraction, 3),
            guided_steps=len(parameters.guided_steps),
            guides_first=0 in parameters.guided_steps,
            width_px=parameters.width_px,
            height_px=parameters.height_px,
            edits=edits,
            is_synthetic=synthetic,
        )

    @property
    def inversion_rows(self) -> int:
        """T for a real source, 0 for a synthetic one."""
        return 0 if self.is_synthetic else self.steps

    @property
    def calls(self) -> int:
        """C: how many calls of the editor the edits take; 1 for up to 64 edits at 512 px."""
        return calls_of_source(self.edits, edits_per_call(self.width_px, self.height_px))

    @property
    def edits_per_call(self) -> int:
        """The most edits of one of these sources that go through the editor together."""
        return min(self.edits, edits_per_call(self.width_px, self.height_px))

    @property
    def sources_per_call(self) -> int:
        """How many of these sources go through the editor together."""
        return max(1, edits_per_call(self.width_px, self.height_px) // self.edits)

    @property
    def source_rows(self) -> int:
        """R C for a real source, (T + G) C for a synthetic one."""
        if not self.is_synthetic:
            return self.replaced_steps * self.calls
        return (self.steps + self.guided_steps) * self.calls

    @property
    def edit_rows(self) -> int:
        """(T + G) N; if the first step is guided, all edits of a call share its unconditional
        row."""
        shared = 1 if self.guides_first else 0
        each = self.steps + self.guided_steps - shared
        return each * self.edits + shared * self.calls

    @property
    def unet_rows(self) -> int:
        """As in `fpe_core.editor`. A row that stops at the last replaced layer counts as one.

        If `layers` names none of the checkpoint's layers, the source's rows are not evaluated; this
        is not taken into account here.
        """
        return self.inversion_rows + self.source_rows + self.edit_rows

    @property
    def retry_rows(self) -> int:
        """Rows of another attempt at all of its edits, with the parameters of attempt 1."""
        return self.source_rows + self.edit_rows

    @property
    def backward_passes(self) -> int:
        """How many of the edits' rows a backward pass follows, which makes them slow."""
        return 0

    @property
    def is_guided(self) -> bool:
        return self.guided_steps > 0

    def unguided(self) -> GroupShape:
        """The same shape without guidance."""
        return replace(self, guided_steps=0, guides_first=False)

    def guided_until(self, share: float) -> GroupShape:
        """The same shape with guidance only until that share of the steps, 0 to 1."""
        last = math.ceil(self.steps * share - 1e-9)
        return replace(self, guided_steps=min(self.guided_steps, last))

    def with_edits(self, edits: int) -> GroupShape:
        return replace(self, edits=edits)

    def with_replacement(self, steps: int, replaced_fraction: float) -> GroupShape:
        """The same shape with other steps and R, and the same share of guided steps."""
        return replace(
            self,
            steps=steps,
            replaced_fraction=replaced_fraction,
            replaced_steps=int(steps * replaced_fraction + 1e-9),
            guided_steps=self.guided_steps * steps // self.steps,
        )


_STAND_IN_MASK = np.ones((1, 1), np.bool_)


def stand_in(
    blend_words: tuple[str, str] | None,
    region_prompts: RegionPrompts | None = None,
    *,
    has_mask: bool,
) -> EditInputs:
    """Inputs that a method counts and checks like those of an edit, before its mask is read."""
    return EditInputs(
        seed=0,
        mask=_STAND_IN_MASK if has_mask else None,
        blend_words=blend_words,
        region_prompts=region_prompts,
    )


def _own_inversions(
    parameters: EditParameters, inputs: Sequence[EditInputs], source_prompt: str
) -> tuple[int, ...]:
    """Of each edit, the number of its inversion if that depends on its inputs; else empty."""
    if parameters.rule.regions is None:
        return ()
    prompts = [parameters.method.region_prompts(source_prompt, "", each) for each in inputs]
    keys = [inversion_key(each, own.mask) for each, own in zip(prompts, inputs, strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)


@dataclass(frozen=True)
class MethodShape(GroupShape):
    """The shape of a group that another method than Free-Prompt-Editing edits.

    Attributes:
        parameters: of all its edits.
        with_words: how many of the edits have blend words.
        has_mask, has_prompt: whether they have a mask, and their source a prompt.
        inversions: of each edit, the number of its inversion, for methods that invert a source
            again for edits with other masks or prompts; empty for all others.
    """

    parameters: EditParameters = field(default_factory=EditParameters)
    with_words: int = 0
    has_mask: bool = False
    has_prompt: bool = False
    inversions: tuple[int, ...] = ()

    @classmethod
    def of_edits(
        cls,
        parameters: EditParameters,
        inputs: Sequence[EditInputs],
        *,
        source_prompt: str,
        synthetic: bool,
    ) -> MethodShape:
        plain = GroupShape.of(parameters, len(inputs), synthetic=synthetic)
        return cls(
            **vars(plain) | {"replaced_steps": 0, "replaced_fraction": 0.0},
            parameters=parameters,
            with_words=sum(each.blend_words is not None for each in inputs),
            has_mask=any(each.mask is not None for each in inputs),
            has_prompt=bool(source_prompt),
            inversions=_own_inversions(parameters, inputs, source_prompt),
        )

    @property
    def inversion_rows(self) -> int:
        return 0 if self.is_synthetic else self._counts.inversion

    @property
    def source_rows(self) -> int:
        if self.is_synthetic:
            return (self.steps + self.guided_steps) * self.calls
        return self._counts.source

    @property
    def edit_rows(self) -> int:
        return self._counts.edits

    @property
    def backward_passes(self) -> int:
        return self._counts.backward

    @cached_property
    def _counts(self) -> RowCounts:
        """Of all calls together; edits with blend words come first."""
        words = [("x", "x")] * self.with_words
        of_source = self.inversions or (None,) * self.edits
        inputs = [
            stand_in(
                pair,
                None if number is None else RegionPrompts(source_inside=str(number)),
                has_mask=self.has_mask,
            )
            for pair, number in zip(
                (*words, *[None] * (self.edits - self.with_words)), of_source, strict=True
            )
        ]
        per_call = edits_per_call(self.width_px, self.height_px)
        counts = [
            row_counts(
                self.parameters,
                [inputs[number] for number in part],
                source_prompt="x" if self.has_prompt else "",
            )
            for ((_, part),) in call_by_call([self.edits], [0], per_call)
        ]
        return RowCounts(
            counts[0].inversion,
            sum(each.source for each in counts),
            sum(each.edits for each in counts),
            sum(each.backward for each in counts),
        )

    def unguided(self) -> MethodShape:
        return self._with(replace(self.parameters, guidance_scale=1.0))

    def guided_until(self, share: float) -> MethodShape:
        return self._with(replace(self.parameters, guidance_interval=(0.0, share)))

    def with_edits(self, edits: int) -> MethodShape:
        numbers = islice(cycle(self.inversions), edits)  # nothing of nothing
        with_words = self.with_words * edits // self.edits
        return replace(self, edits=edits, with_words=with_words, inversions=tuple(numbers))

    def with_replacement(self, steps: int, replaced_fraction: float) -> MethodShape:  # noqa: ARG002
        """The same shape with other steps; the method's own shares of them stay.

        With fewer than its method can do with, it has the fewest that it can.
        """
        start = self.parameters.rule.start
        enough = next(n for n in range(steps, max(steps, self.steps) + 1) if start.sampled_steps(n))
        return self._with(replace(self.parameters, steps=enough))

    def _with(self, parameters: EditParameters) -> MethodShape:
        return replace(
            self,
            parameters=parameters,
            steps=parameters.steps,
            guided_steps=len(parameters.guided_steps),
            guides_first=0 in parameters.guided_steps,
        )

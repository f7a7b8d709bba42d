"""How many UNet rows an edit call takes, from the method's rule alone: no torch, no model.

    counts = row_counts(parameters, [NOTHING] * 4, source_prompt="a red car")
    counts.inversion, counts.source, counts.edits

The counts are those of real sources, counted at the UNet in the tests of every method. Two things
cannot be known without the checkpoint, and are not taken into account: rules that name none of its
layers, and prompts that differ in what the tokenizer drops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fpe_core.editors.method import EditInputs
from fpe_core.editors.region_prompts import inversion_key
from fpe_core.injection import (
    CONDITIONAL,
    EMPTY,
    UNCONDITIONAL,
    DifferenceMask,
    EditRule,
    WordMask,
)
from fpe_core.parameters import EditParameters

NULL_TEXT_ITERATIONS = 10
"""The most steps of the optimiser for one guided step of null-text inversion."""
MOST_ROWS_PER_STEP = NULL_TEXT_ITERATIONS + 2
"""Of such a step: the conditional row, one for each iteration, and the one to go on with
(`fpe_core.null_text`)."""


@dataclass(frozen=True)
class RowCounts:
    """UNet rows of one source with its edits.

    Attributes:
        inversion: of the source's inversion, whatever the number of edits; with null-text
            inversion the most that it may take, backward passes not counted.
        source: of the source beside its edits, and of inversions that depend on them.
        edits: of its edits, those of their masks included.
        backward: how many of the edits' rows a backward pass follows; those of null-text inversion
            are not counted.
    """

    inversion: int
    source: int
    edits: int
    backward: int = 0

    @property
    def total(self) -> int:
        return self.inversion + self.source + self.edits


def row_counts(
    parameters: EditParameters, inputs: Sequence[EditInputs], *, source_prompt: str = ""
) -> RowCounts:
    """The rows of a real source with one edit for each of `inputs`, all in one call."""
    by_rule = Counter(parameters.rule_for(each) for each in inputs)
    inversion, backward = parameters.inverted_steps, 0
    if parameters.rule.cross_guidance is not None:
        backward = moved_rows(parameters) * len(inputs)
    if parameters.inversion == "edit_friendly":  # nothing is left over after the last step
        inversion = (inversion - 1) * edit_friendly_rows(parameters, source_prompt)
    elif parameters.inversion == "null_text":
        inversion += MOST_ROWS_PER_STEP * len(parameters.guided_steps)
        inversion += parameters.steps - len(parameters.guided_steps)
    counts = [_counts(rule, n, parameters, source_prompt) for rule, n in by_rule.items()]
    own = parameters.steps * _own_inversions(parameters, inputs, source_prompt)
    return RowCounts(
        inversion,
        own + sum(source for source, _ in counts),
        sum(edits for _, edits in counts),
        backward,
    )


def moved_rows(parameters: EditParameters) -> int:
    """Rows of an edit that are moved by their gradient: two a guided step, one at others."""
    return parameters.steps + len(parameters.guided_steps)


def _own_inversions(
    parameters: EditParameters, inputs: Sequence[EditInputs], source_prompt: str
) -> int:
    """How many inversions these edits need that depend on their masks and region prompts."""
    if parameters.rule.regions is None:
        return 0
    of = parameters.method.region_prompts
    return len({inversion_key(of(source_prompt, "", each), each.mask) for each in inputs})


def source_rows_at(rule: EditRule, step: int, steps: int) -> frozenset[str]:
    """Which rows of a source (`SOURCE_ROWS`) give something at a step, from 0 at the noisy end."""
    rows = {
        row
        for each in rule.exchanges
        if step in each.steps_of(steps)
        for row in (each.conditional, each.unconditional)
        if row is not None
    }
    if rule.blend is not None and isinstance(rule.blend.mask, WordMask):
        rows.add(CONDITIONAL)
    return frozenset(rows)


def source_prompts_of(
    rows: frozenset[str], source_prompt: str, negative_prompt: str
) -> dict[str, str]:
    """The prompt of each of these rows of a source; rows with equal prompts are one row."""
    prompts = {CONDITIONAL: source_prompt, UNCONDITIONAL: negative_prompt, EMPTY: ""}
    return {row: prompts[row] for row in sorted(rows)}


def null_text_name(source: int) -> str:
    """What stands for the optimised embeddings of a source among prompts."""
    return f"\0null-text of source {source}"


def edit_friendly_rows(parameters: EditParameters, source_prompt: str) -> int:
    """Rows of a source at each level of an edit-friendly inversion."""
    same = source_prompt == parameters.negative_prompt
    return 1 if same or parameters.source_guidance_scale == 1.0 else 2


def unconditional_prompt(parameters: EditParameters, source_prompt: str, source: int = 0) -> str:
    """The prompt of the unconditional rows of a source's edits.

    With null-text inversion it is a name for the embeddings of source number `source`, which no
    prompt is.
    """
    if parameters.inversion == "null_text":
        return null_text_name(source)
    is_caption = parameters.rule.cross_guidance is not None
    npi = is_caption or parameters.inversion == "negative_prompt"
    return source_prompt if npi else parameters.negative_prompt


def guided_steps(rule: EditRule, parameters: EditParameters) -> range:
    """The steps that need more than one row of an edit, from 0 at the noisy end."""
    if rule.image_guidance is not None and rule.image_guidance != 1.0:
        return parameters.interval_steps
    return parameters.guided_steps


def rows_when_guided(rule: EditRule) -> int:
    """Rows of an edit at such a step."""
    return 2 if rule.image_guidance in (None, 1.0) else 3


def shares_first_step(rule: EditRule) -> bool:
    """Whether all edits of a source start with one latent, and so with one unconditional row.

    Not if a mask splits their attention: what is split differs from edit to edit.
    """
    return rule.start.latent == "inverted" and rule.regions is None


def lends_first_row(rule: EditRule, parameters: EditParameters) -> bool:
    """Whether that row is the source's own: it has its prompt, its latent, and its attentions."""
    first = parameters.steps - rule.start.sampled_steps(parameters.steps)
    active = [each for each in rule.exchanges if first in each.steps_of(parameters.steps)]
    return (
        parameters.inversion == "negative_prompt"
        and shares_first_step(rule)
        and first in parameters.guided_steps
        and CONDITIONAL in source_rows_at(rule, first, parameters.steps)
        # What its own row gives, it has; keys that are there twice change nothing either.
        and all(each.unconditional in (None, CONDITIONAL, UNCONDITIONAL) for each in active)
    )


def _counts(
    rule: EditRule, edits: int, parameters: EditParameters, source_prompt: str
) -> tuple[int, int]:
    """(rows of the source, rows of its edits) of the edits with one rule."""
    if rule.cross_guidance is not None:  # a row is evaluated where it was, and where it is moved to
        return parameters.steps, 2 * moved_rows(parameters) * edits
    steps, guided = parameters.steps, guided_steps(rule, parameters)
    sampled = range(steps - rule.start.sampled_steps(steps), steps)
    negative = unconditional_prompt(parameters, source_prompt)
    source = sum(
        len(
            set(source_prompts_of(source_rows_at(rule, i, steps), source_prompt, negative).values())
        )
        for i in sampled
    )
    made = sum(rows_when_guided(rule) if i in guided else 1 for i in sampled) * edits
    if sampled and sampled[0] in guided and shares_first_step(rule):
        made -= edits if lends_first_row(rule, parameters) else edits - 1
    if rule.blend is not None and isinstance(rule.blend.mask, DifferenceMask):
        made += 2 * rule.blend.mask.samples * edits
    return source, made

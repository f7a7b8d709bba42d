"""What the cost of a group depends on: the number of UNet rows for its source and its edits.

    inversion   of a real source: one row per step
    source      the source next to its edits: a real one at the steps that replace maps, a synthetic
                one at all steps; again in every call that its edits take (`editor_calls`)
    edit        the edits

Groups of the same shape cost the same; a job of millions has a handful of shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fpe_core import EditParameters
from pipeline.editor_calls import calls_of_source, edits_per_call


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

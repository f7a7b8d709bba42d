"""What decides the cost of a group: how many UNet rows its source and its edits take, and of which
kind.

    inversion   a real source, one row a step
    source      the source beside its edits: a real one at the steps that replace maps, a synthetic
                one at all of them
    edit        the edits

Groups of one shape cost the same; a job of millions has a handful of shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fpe_core import EditParameters


@dataclass(frozen=True)
class GroupShape:
    """A source with its edits, as far as its cost goes. T steps, R of them replace maps, G of them
    are guided (all or none, but for `EditParameters.guidance_interval`), N edits.

    `replaced_fraction`: that R comes of, to three decimals, so that a manifest with one of its own
    in every row has not as many shapes.
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
        """T; none of a synthetic source."""
        return 0 if self.is_synthetic else self.steps

    @property
    def source_rows(self) -> int:
        """R of a real source, T + G of a synthetic one."""
        if not self.is_synthetic:
            return self.replaced_steps
        return self.steps + self.guided_steps

    @property
    def edit_rows(self) -> int:
        """(T + G) N; if the first step is guided, its unconditional row is one for all edits."""
        shared = 1 if self.guides_first else 0
        each = self.steps + self.guided_steps - shared
        return each * self.edits + shared

    @property
    def unet_rows(self) -> int:
        """As `fpe_core.editor` says. A row that stops at the last replaced layer counts as one.

        `layers` that name none of the checkpoint's layers save the source's own rows, which is not
        foreseen here.
        """
        return self.inversion_rows + self.source_rows + self.edit_rows

    @property
    def retry_rows(self) -> int:
        """Rows of attempting all of its edits again, with the parameters of attempt 1."""
        return self.source_rows + self.edit_rows

    @property
    def is_guided(self) -> bool:
        return self.guided_steps > 0

    def unguided(self) -> GroupShape:
        """The same at guidance 1."""
        return replace(self, guided_steps=0, guides_first=False)

    def guided_until(self, share: float) -> GroupShape:
        """The same with guidance only until that share of the steps, 0..1."""
        last = math.ceil(self.steps * share - 1e-9)
        return replace(self, guided_steps=min(self.guided_steps, last))

    def with_edits(self, edits: int) -> GroupShape:
        return replace(self, edits=edits)

    def with_replacement(self, steps: int, replaced_fraction: float) -> GroupShape:
        """R as `EditParameters` has it; as many of the steps are guided as were."""
        return replace(
            self,
            steps=steps,
            replaced_fraction=replaced_fraction,
            replaced_steps=int(steps * replaced_fraction + 1e-9),
            guided_steps=self.guided_steps * steps // self.steps,
        )

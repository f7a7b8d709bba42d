"""Between inversion and edit: sources that do not come back unedited are not edited.

Their edits are rejected as `source_not_reproduced` for what inverting the source has cost, and what
the estimate costs on top of that. That keeps out pictures that the model does not know, no more:
`fpe_core.still_life.gate_benchmark` has what either figure predicts. Synthetic sources are sampled
beside their edits: nothing is lost on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fpe_core import Editor, Inversion
from fpe_core.acceptance import Verdict
from fpe_core.reproduction import Reproduction, ReproductionLimits, measure_reproduction


@dataclass(frozen=True)
class ReproductionGate:
    """Measures what its limits look at, and nothing else."""

    editor: Editor
    limits: ReproductionLimits

    def measure(self, inversion: Inversion) -> tuple[tuple[Reproduction | None, ...], int]:
        """Of each source how well it comes back, None where no limit is set; UNet rows it took."""
        if not self.limits.is_on:
            return (None,) * len(inversion), 0
        return measure_reproduction(
            self.editor,
            inversion,
            with_inversion=self.limits.inversion_psnr_db_at_least is not None,
        )

    def verdicts(self, reproductions: Sequence[Reproduction | None]) -> list[Verdict]:
        """Of each source, whether its edits are made; always, where nothing was measured."""
        return [
            Verdict(None) if found is None else self.limits.verdict(found)
            for found in reproductions
        ]

"""Before the edits: sources that do not come back unedited are not edited.

Their edits are rejected as `source_not_reproduced`. The autoencoder is tried first, before the
source is inverted, so one that it does not give back costs no UNet row; what inversion loses is
known after it. That keeps out pictures that the model does not know, no more:
`fpe_core.still_life.benchmark.gate` has what either figure predicts. Synthetic sources are sampled
beside their edits: nothing is lost on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fpe_core import Editor, Inversion
from fpe_core.judging.reproduction import (
    Reproduction,
    ReproductionLimits,
    measure_autoencoder,
    measure_reproduction,
)
from fpe_core.judging.rules import Verdict
from pipeline.read.group import Group


@dataclass(frozen=True)
class ReproductionGate:
    """Measures what its limits look at, and nothing else."""

    editor: Editor
    limits: ReproductionLimits

    def look_at(self, groups: Sequence[Group]) -> list[Reproduction | None]:
        """How well real sources of one size come through the autoencoder; None where no limit is
        set, and of synthetic ones."""
        images = [group.image for group in groups if group.image is not None]
        if self.limits.autoencoder_psnr_db_at_least is None or len(images) < len(groups):
            return [None] * len(groups)
        return list(measure_autoencoder(self.editor, images, groups[0].parameters))

    def measure(
        self, inversion: Inversion, known: Sequence[Reproduction | None]
    ) -> tuple[tuple[Reproduction | None, ...], int]:
        """What is `known` of each source, and what inversion loses where there is a limit on it;
        UNet rows it took."""
        if self.limits.inversion_psnr_db_at_least is None:
            return tuple(known), 0
        return measure_reproduction(self.editor, inversion)

    def verdict(self, found: Reproduction | None) -> Verdict:
        """Whether the edits of a source are made; always, where nothing was measured."""
        return Verdict(None) if found is None else self.limits.verdict(found)

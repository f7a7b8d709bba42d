"""Skips sources that the model cannot reconstruct: encode, decode, and compare.

Their edits are rejected as `source_not_reconstructed` before the source is inverted, so they cost
no UNet row. This finds images that the model does not know, and nothing else
(`fpe_core.still_life.benchmark.gate`). Synthetic sources are sampled by the model itself, so there
is nothing to compare them with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fpe_core.judging.reconstruction import (
    HasAutoencoder,
    ReconstructionLimits,
    measure_autoencoder,
)
from fpe_core.judging.rules import Verdict
from pipeline.read.group import Group


@dataclass(frozen=True)
class ReconstructionGate:
    """Measures sources, if the job sets a limit, and decides whether they are edited."""

    editor: HasAutoencoder
    limits: ReconstructionLimits

    def measure(self, groups: Sequence[Group]) -> list[float | None]:
        """PSNR in dB of each source after encoding and decoding, against the source itself. None
        for all of them if no limit is set, or if they are synthetic.

        Groups have equal parameters and are all real or all synthetic. Raises RowsOutOfMemoryError.
        """
        images = [group.image for group in groups if group.image is not None]
        if not self.limits.is_on or len(images) < len(groups):
            return [None] * len(groups)
        return list(measure_autoencoder(self.editor, images, groups[0].parameters))

    def verdict(self, autoencoder_psnr_db: float | None) -> Verdict:
        """Whether the edits of a source are made. They are if nothing was measured."""
        return self.limits.verdict(autoencoder_psnr_db)

"""How well the autoencoder alone reconstructs a source, and whether that is good enough to edit it.

    (psnr_db,) = measure_autoencoder(editor, [image], parameters)
    ReconstructionLimits(autoencoder_psnr_db_at_least=20.0).verdict(psnr_db).reason

Every edit goes through the autoencoder, so a source that it cannot reconstruct is one that the
model does not know. The PSNR shows no more than that: it does not predict bad edits of a source
that the model knows (measured in `fpe_core.still_life.benchmark.gate`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from fpe_core.judging.rules import RejectReason, Verdict
from fpe_core.parameters import EditParameters


@dataclasses.dataclass(frozen=True)
class ReconstructionLimits:
    """The lowest PSNR, in dB, at which a source is edited; None: no limit."""

    autoencoder_psnr_db_at_least: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is a limit."""
        return self.autoencoder_psnr_db_at_least is not None

    def verdict(self, autoencoder_psnr_db: float | None) -> Verdict:
        """SOURCE_NOT_RECONSTRUCTED below the limit, else accepted; None, not measured, too."""
        limit = self.autoencoder_psnr_db_at_least
        if limit is None or autoencoder_psnr_db is None or autoencoder_psnr_db >= limit:
            return Verdict(None)
        return Verdict(
            RejectReason.SOURCE_NOT_RECONSTRUCTED,
            "the model cannot reconstruct the source: "
            f"autoencoder {autoencoder_psnr_db:.1f} dB, less than {limit:g}",
        )


class HasAutoencoder(Protocol):
    """Anything that encodes and decodes images as `fpe_core.Editor.through_autoencoder` does."""

    def through_autoencoder(
        self, images: Sequence[Image.Image], parameters: EditParameters
    ) -> tuple[Image.Image, ...]: ...


def measure_autoencoder(
    editor: HasAutoencoder, images: Sequence[Image.Image], parameters: EditParameters
) -> tuple[float, ...]:
    """PSNR in dB of each image, encoded and decoded, to itself; infinite for equal images.

    `images` have the parameters' size. Costs no UNet row. Raises RowsOutOfMemoryError.
    """
    if not images:
        return ()
    from fpe_core.scores.pixels import psnr_db  # loads torch; limits are read without it

    return tuple(psnr_db(images, editor.through_autoencoder(images, parameters)))

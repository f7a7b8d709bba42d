"""How well a source comes back without being edited.

    inversion = editor.invert(images, source_prompts)
    found, unet_rows = measure_reproduction(editor, inversion)
    found[0].autoencoder_psnr_db, found[0].inversion_psnr_db

Two losses, apart. The autoencoder's: the source encoded and decoded, against the source. The
inversion's: sampling from z_T back with the source prompt, unguided, then decoded, against the
source encoded and decoded. An edit pins its source to the trajectory and never walks it back, so
the second is no by-product of editing: it costs T UNet rows a source.

What either tells of a source's edits is measured by `fpe bench gate`, and
`still_life.gate_benchmark` has the figures: the first tells pictures that the model does not know,
for no row; neither tells which edits of a picture that it knows will be bad.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from fpe_core.judging.rules import RejectReason, Verdict
from fpe_core.parameters import EditParameters

if TYPE_CHECKING:
    from fpe_core.editor import Editor
    from fpe_core.inversion import Inversion


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """How well one source comes back: PSNR in dB, infinite for equal pictures; None: not measured.

    Attributes:
        autoencoder_psnr_db: encoded and decoded, to the source.
        inversion_psnr_db: inverted and sampled back, to the source encoded and decoded.
    """

    autoencoder_psnr_db: float | None = None
    inversion_psnr_db: float | None = None


@dataclasses.dataclass(frozen=True)
class ReproductionLimits:
    """The least of either for a source to be edited, dB; None: not looked at."""

    autoencoder_psnr_db_at_least: float | None = None
    inversion_psnr_db_at_least: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is a limit at all."""
        return self != ReproductionLimits()

    def verdict(self, found: Reproduction) -> Verdict:
        """Accepted, or SOURCE_NOT_REPRODUCED with both figures. What was not measured passes."""
        pairs = {
            "autoencoder": (found.autoencoder_psnr_db, self.autoencoder_psnr_db_at_least),
            "inversion": (found.inversion_psnr_db, self.inversion_psnr_db_at_least),
        }
        below = [
            f"{name} {value:.1f} dB, less than {limit:g}"
            for name, (value, limit) in pairs.items()
            if value is not None and limit is not None and not value >= limit
        ]
        if not below:
            return Verdict(None)
        known = [
            f"{name} {value:.1f} dB" for name, (value, _) in pairs.items() if value is not None
        ]
        return Verdict(
            RejectReason.SOURCE_NOT_REPRODUCED,
            f"the source does not come back unedited: {'; '.join(below)} ({', '.join(known)})",
        )


def measure_autoencoder(
    editor: Editor, images: Sequence[Image.Image], parameters: EditParameters
) -> tuple[Reproduction, ...]:
    """How well images of the parameters' size come through the autoencoder; costs no UNet row.

    Raises RowsOutOfMemoryError.
    """
    if not images:
        return ()
    from fpe_core.scores.pixels import psnr_db  # loads torch; limits are read without it

    decoded = editor.through_autoencoder(images, parameters)
    return tuple(Reproduction(floor) for floor in psnr_db(images, decoded))


def measure_reproduction(
    editor: Editor, inversion: Inversion
) -> tuple[tuple[Reproduction, ...], int]:
    """How well each source of an inversion comes back, in order; and the UNet rows that it took.

    Args:
        editor: the one that inverted.
        inversion: of S images; what has diverged gets figures that mean nothing. T rows a source.

    Raises:
        RowsOutOfMemoryError.
    """
    from fpe_core.scores.pixels import psnr_db

    decoded = editor.decode(inversion.trajectory[:, 0], inversion.parameters)
    floors = psnr_db(inversion.images, decoded)
    plain = dataclasses.replace(inversion.parameters, guidance_scale=1.0, replaced_fraction=0.0)
    again = editor.edit(inversion, [[prompt] for prompt in inversion.source_prompts], plain)
    returned = psnr_db(decoded, [edits[0].image for edits in again.edits])
    figures = zip(floors, returned, strict=True)
    return tuple(Reproduction(*both) for both in figures), again.unet_rows

"""The inversions of `EditParameters.inversion`, and those that a method has of its own."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from fpe_core.edit_friendly import invert_edit_friendly
from fpe_core.inversion import invert, seed_of
from fpe_core.parameters import EditParameters
from fpe_core.regularised import NoiseRegularisation
from fpe_core.schedule import DDIMSchedule
from fpe_core.size_ids import SizeIds
from fpe_core.unet.denoiser import Denoiser
from fpe_core.unet.rows import UNetRows


def inversion_prompts(parameters: EditParameters) -> tuple[str, ...]:
    """The prompts that the inversion needs besides those of the sources."""
    return (parameters.negative_prompt,) if parameters.inversion == "edit_friendly" else ()


def invert_by(
    parameters: EditParameters,
    denoiser: Denoiser,
    schedule: DDIMSchedule,
    z_0: Tensor,
    *,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    sizes: Sequence[SizeIds],
) -> tuple[Tensor, Tensor | None]:
    """The trajectories of S sources, as far as the editor needs, by the parameters' inversion.

    Args:
        z_0: (S, C, h, w).
        images: as the model sees them; their pixels seed what is drawn.
        prompts, sizes: of the sources.

    Returns:
        z_0 .. z_K, (S, K + 1, C, h, w); and the noise maps, (S, K, C, h, w), of an edit-friendly
        inversion, None for others.

    Raises:
        RowsOutOfMemoryError: a single row does not fit.
    """
    own = [denoiser.text.of(*each) for each in zip(prompts, sizes, strict=True)]
    levels = parameters.inverted_steps
    if parameters.inversion == "edit_friendly":
        negatives = [denoiser.text.of(parameters.negative_prompt, size) for size in sizes]
        return invert_edit_friendly(
            denoiser,
            schedule,
            z_0,
            seeds=[seed_of(image) for image in images],
            prompts=list(zip(own, negatives, strict=True)),
            guidance_scale=parameters.source_guidance_scale,
            levels=levels,
        )
    step = None
    if images and parameters.rule.cross_guidance is not None:
        step = NoiseRegularisation(schedule, images, z_0).invert_step
    rows = UNetRows.unguided(own, z_0.device)
    return invert(denoiser, schedule, rows, z_0, levels, invert_step=step), None

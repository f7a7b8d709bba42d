"""Edits sampled beside their sources, from the noisy end down (FPE, arXiv 2403.03431, sec. 4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fpe_core.edit_rows import EditRows
from fpe_core.inversion import Sources, SyntheticSources
from fpe_core.parameters import EditParameters
from fpe_core.schedule import DDIMSchedule
from fpe_core.unet.attention import SourceMaps
from fpe_core.unet.denoiser import Denoiser, Giving, Recording


def sample_edits(
    denoiser: Denoiser,
    schedule: DDIMSchedule,
    maps: SourceMaps,
    sources: Sources,
    target_prompts: Sequence[Sequence[str]],
    *,
    parameters: EditParameters,
) -> tuple[Tensor, Tensor]:
    """Final latents z_0 of all edits, flat, and of the sources if they are synthetic.

    Args:
        denoiser: with all prompts encoded.
        maps: of the layers to replace; of none where nothing is to be replaced.

    Raises:
        RowsOutOfMemoryError: a single row does not fit.
    """
    rows = EditRows.of(sources, target_prompts, parameters, denoiser.text)
    denoiser.prepare(each for step in range(schedule.steps) for each in rows.at(step))
    replaced_steps = parameters.replaced_steps if maps.attentions and any(target_prompts) else 0
    record, give = Recording(maps), Giving(maps, rows.source_of_edit)
    z_source = sources.start
    z = z_source[rows.source_of_edit]
    for step, k in enumerate(reversed(range(schedule.steps))):
        t, inject = schedule.timesteps[k], step < replaced_steps
        source_rows, edit_rows = rows.at(step)
        maps.forget()
        if isinstance(sources, SyntheticSources):  # sampled together with their edits
            output = denoiser.evaluate(source_rows, z_source, t, record if inject else None)
            z_source = schedule.sample_step(z_source, source_rows.guide(output), k)
        elif inject:
            # A real source is pinned to its inversion: its latent at t_k is z_(k+1) of the
            # trajectory. Inversion evaluated z_k there, so its maps are not the ones wanted here.
            denoiser.record(source_rows, sources.trajectory[:, k + 1], t, maps)
        output = denoiser.evaluate(edit_rows, z, t, give if inject else None)
        z = schedule.sample_step(z, edit_rows.guide(output), k)
    return z, z_source

"""Free-Prompt-Editing's sampling loop: edits and their sources, from the noisy end down.

At each of the first steps the self-attention maps of a source replace those of its edits
(arXiv 2403.03431, sec. 4). Everything else is guided DDIM sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fpe_core.edit_rows import EditRows
from fpe_core.inversion import Sources, SyntheticSources
from fpe_core.parameters import EditParameters
from fpe_core.schedule import DDIMSchedule
from fpe_core.unet.attention import SourceMaps
from fpe_core.unet.denoiser import Denoiser, InjectMaps, RecordMaps


def sample_edits(
    denoiser: Denoiser,
    schedule: DDIMSchedule,
    maps: SourceMaps,
    sources: Sources,
    target_prompts: Sequence[Sequence[str]],
    *,
    parameters: EditParameters,
) -> tuple[Tensor, Tensor]:
    """Samples the edits of S sources together.

    Args:
        denoiser: the UNet with all prompts encoded, the negative one included.
        schedule: of `parameters.steps` steps.
        maps: stores the maps of the layers to replace; without layers nothing is replaced.
        sources: inverted images, or prompts and noise.
        target_prompts: per source, one prompt for each of its edits.
        parameters: of all edits.

    Returns:
        z_0 of the edits, source by source, (edits, C, h, w), and of the sources, (S, C, h, w); the
        latter are meaningless if the sources are inverted images.

    Raises:
        RowsOutOfMemoryError: a single row does not fit.
    """
    rows = EditRows.of(sources, target_prompts, parameters, denoiser.text)
    denoiser.prepare(each for step in range(schedule.steps) for each in rows.at(step))
    replaced_steps = parameters.replaced_steps if maps.attentions and any(target_prompts) else 0
    record, inject_maps = RecordMaps(maps), InjectMaps(maps, rows.source_of_edit)
    z_source = sources.start
    z = z_source[rows.source_of_edit]
    for step, k in enumerate(reversed(range(schedule.steps))):
        t, inject = schedule.timesteps[k], step < replaced_steps
        source_rows, edit_rows = rows.at(step)
        maps.clear()
        if isinstance(sources, SyntheticSources):  # sampled together with their edits
            output = denoiser.evaluate(source_rows, z_source, t, record if inject else None)
            z_source = schedule.sample_step(z_source, source_rows.guide(output), k)
        elif inject:
            # A real source is pinned to its inversion: its latent at t_k is z_(k+1) of the
            # trajectory. Inversion evaluated z_k at t_k, so its maps are not the ones needed here.
            denoiser.record(source_rows, sources.trajectory[:, k + 1], t, maps)
        output = denoiser.evaluate(edit_rows, z, t, inject_maps if inject else None)
        z = schedule.sample_step(z, edit_rows.guide(output), k)
    return z, z_source

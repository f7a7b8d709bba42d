"""Edits sampled beside their sources, from the noisy end down (FPE, arXiv 2403.03431, sec. 4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fpe_core.edit_rows import EditRows
from fpe_core.inversion import Inversion, Sources
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
    edits = sum(len(prompts) for prompts in target_prompts)
    replaced_steps = parameters.replaced_steps if maps.attentions and edits else 0
    rows = EditRows.of(
        sources, target_prompts, parameters, denoiser.text, replaces=replaced_steps > 0
    )
    denoiser.prepare(*rows.all())
    z_source = sources.start
    z = z_source[rows.source_of_edit]

    record, give = Recording(maps), Giving(maps, rows.source_of_edit)
    for step, k in enumerate(reversed(range(schedule.steps))):
        timestep, replacing = schedule.timesteps[k], step < replaced_steps
        first = rows.first if step == 0 else None
        source_rows, target_rows = rows.at(step)
        maps.forget()
        source_outputs = z[:0]
        if not isinstance(sources, Inversion):
            source_outputs = denoiser.evaluate(
                source_rows, z_source, timestep, record if replacing else None
            )
            z_source = schedule.sample_step(z_source, source_rows.guide(source_outputs), k)
        elif replacing:
            # A real source is pinned: at t_k its row is z_(k+1) of the trajectory, which is not the
            # point that inversion evaluated, so its Q and K there are not inversion's.
            pinned = sources.trajectory[:, k + 1]
            if first is not None and first.lends:
                source_outputs = denoiser.evaluate(source_rows, pinned, timestep, record)
            else:
                denoiser.record(source_rows, pinned, timestep, maps)
        given = give if replacing else None
        if first is None:
            output = target_rows.guide(denoiser.evaluate(target_rows, z, timestep, given))
        else:
            outputs = denoiser.evaluate(first.rows, z, timestep, given)
            output = first.guide(source_outputs, outputs)
        z = schedule.sample_step(z, output, k)
    return z, z_source

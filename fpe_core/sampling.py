"""The sampling loop: edits and their sources, from the noisy end down, by an editor's rule.

At the steps that the rule names, attention layers of the edits take queries, keys or values of
their sources: in Free-Prompt-Editing (arXiv 2403.03431, sec. 4) the self-attention maps, at the
first steps. Everything else is guided DDIM sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fpe_core.blending import (
    Blending,
    EditNoise,
    WordMasks,
    difference_masks,
    given_masks,
    noised,
)
from fpe_core.edit_regions import EditRegions
from fpe_core.edit_rows import AskedEdit, EditRows, RuleSites
from fpe_core.edit_words import EditWords
from fpe_core.editors.method import EditInputs
from fpe_core.errors import ParameterError
from fpe_core.injection import DifferenceMask, EditRule, WordMask, floor_of
from fpe_core.inversion import Inversion, Sources, SyntheticSources
from fpe_core.near_source import NearSource
from fpe_core.parameters import EditParameters
from fpe_core.schedule import DDIMSchedule
from fpe_core.unet.denoiser import Denoiser


@dataclass(frozen=True, eq=False)
class Sampled:
    """What `sample_edits` makes.

    Attributes:
        latents: z_0 of the edits, source by source, (edits, C, h, w).
        sources: z_0 of the sources, (S, C, h, w); meaningless if they are inverted images.
        masks: where each edit is not its source, (edits, 1, h, w), bool; None without masks.
    """

    latents: Tensor
    sources: Tensor
    masks: Tensor | None


def sample_edits(
    denoiser: Denoiser,
    schedule: DDIMSchedule,
    sites: RuleSites,
    sources: Sources,
    asked: Sequence[AskedEdit],
    *,
    inputs: Sequence[EditInputs],
    parameters: EditParameters,
    words: EditWords | None = None,
    seen: Tensor | None = None,
    regions: EditRegions | None = None,
) -> Sampled:
    """Samples the edits of S sources together.

    Args:
        denoiser: the UNet with all prompts encoded, the negative one included.
        schedule: of `parameters.steps` steps.
        sites: of the rule of all edits.
        sources: inverted images, or prompts and noise.
        asked: the edits, source by source.
        inputs: of each edit.
        parameters: of all edits.
        words: of the edits, if the rule mixes words.
        seen: what the UNet sees of each source besides, if the rule guides by it, (S, C', h, w).
        regions: of the edits, if masks split their attention.

    Raises:
        ParameterError: the sources or the inputs do not have what the rule needs.
        RowsOutOfMemoryError: a single row does not fit.
    """
    rule, steps = sites.rule, schedule.steps
    _require_sources(rule, sources, parameters)
    if regions is not None and isinstance(sources, Inversion):
        sources, asked = regions.inverted(denoiser, schedule, sources), regions.asked
    split = None if regions is None else regions.of_edits
    rows = EditRows(
        sources, asked, parameters, sites, text=denoiser.text, words=words, regions=split
    )
    levels = rule.start.sampled_steps(steps)
    in_turn = [rows.at(step) for step in range(steps - levels, steps)]
    denoiser.prepare(each for now in in_turn for each in (now.source, now.edit))
    z_source = sources.start
    noise = EditNoise([each.seed for each in inputs], z_source) if rule.is_noisy else None
    z = _start(rule, schedule, sources, rows.source_of_edit, noise)
    blending = _blending(
        rule,
        denoiser,
        schedule,
        sources,
        asked=asked,
        inputs=inputs,
        source_of_edit=rows.source_of_edit,
        noise=noise,
        start=z,
    )
    z = blending.bound(levels, z)
    near = NearSource(parameters.proximal, _at_levels(sources, rows.source_of_edit))
    move = _mover(rule, schedule, sources, rows.source_of_edit, noise)
    beside = _Beside(None if seen is None else seen[rows.source_of_edit])
    for step, k in enumerate(reversed(range(levels)), start=steps - levels):
        t, now = schedule.timesteps[k], rows.at(step)
        rows.clear()
        denoiser.begin(step)
        of_sources = z[:0]
        if isinstance(sources, SyntheticSources):  # sampled together with their edits
            of_sources = denoiser.evaluate(now.source, z_source, t, now.record)
            z_source = schedule.sample_step(z_source, now.source.guide(of_sources), k)
        elif now.record is not None:
            # A real source is pinned to its inversion: its latent at t_k is z_(k+1) of the
            # trajectory. Inversion evaluated z_k at t_k, so its maps are not the ones needed here.
            z_source = sources.trajectory[:, k + 1]
            of_sources = denoiser.evaluate(now.source, z_source, t, now.record)
        output = denoiser.evaluate(now.edit, beside(z), t, now.inject)
        z = move(z, now.guide(output, of_sources, near.shrink), k)
        z = near.pull(z, k, t, z_source)
        z = blending.after(step, k, z, z_source, now.columns)
    return Sampled(z, z_source, blending.masks)


class _Beside:
    """Puts the images that a UNet sees beside the latents of their edits.

    (edits, C, h, w) to (2 edits, C + C', h, w): every latent with its image, then with zeros, as
    `UNetRows.guided_by_image` has them. Without images, or without edits, latents stay as they are.
    """

    def __init__(self, images: Tensor | None) -> None:
        """`images`: of each edit, (edits, C', h, w)."""
        self._images = None if images is None else torch.cat([images, torch.zeros_like(images)])

    def __call__(self, z: Tensor) -> Tensor:
        if self._images is None or not len(z):
            return z
        return torch.cat([torch.cat([z, z]), self._images], dim=1)


def _require_sources(rule: EditRule, sources: Sources, parameters: EditParameters) -> None:
    """Raises ParameterError if these sources cannot give what the rule takes."""
    if isinstance(sources, Inversion):
        needed, there = rule.inverted_steps(parameters.steps), sources.trajectory.shape[1] - 1
        if there < needed:
            raise ParameterError(
                f"{parameters.method.name} needs {needed} steps of the inversion, and it has "
                f"{there}: invert with parameters of this editor"
            )
        return
    if not rule.edits_synthetic or parameters.inversion != "direct":
        raise ParameterError(
            f"{parameters.method.name} with inversion {parameters.inversion}"
            f"{' and masks that bind' if rule.inside else ''} edits images; it cannot edit a "
            "source that is synthesised beside its edits"
        )


def _mover(
    rule: EditRule,
    schedule: DDIMSchedule,
    sources: Sources,
    source_of_edit: Tensor,
    noise: EditNoise | None,
) -> Callable[[Tensor, Tensor, int], Tensor]:
    """(z_(k+1) of the edits, what is predicted there, k) to z_k."""
    maps = sources.noise_maps if isinstance(sources, Inversion) else None

    def by_maps(z: Tensor, predicted: Tensor, k: int) -> Tensor:
        assert maps is not None
        return schedule.ancestral_mean(z, predicted, k) + maps[:, k][source_of_edit]

    def with_noise(z: Tensor, predicted: Tensor, k: int) -> Tensor:
        assert noise is not None
        return schedule.euler_ancestral_step(z, predicted, k, noise.draw())

    if maps is not None:
        return by_maps
    return with_noise if rule.sampler == "euler_ancestral" else schedule.sample_step


def _at_levels(sources: Sources, source_of_edit: Tensor) -> Callable[[int, Tensor], Tensor]:
    """(level k, z_k of sources that are sampled) to those of the edits', (edits, C, h, w)."""

    def at(k: int, sampled: Tensor) -> Tensor:
        of_sources = sources.trajectory[:, k] if isinstance(sources, Inversion) else sampled
        return of_sources[source_of_edit]

    return at


def _start(
    rule: EditRule,
    schedule: DDIMSchedule,
    sources: Sources,
    source_of_edit: Tensor,
    noise: EditNoise | None,
) -> Tensor:
    """Where the edits start: (edits, C, h, w)."""
    level = rule.start.sampled_steps(schedule.steps)
    if isinstance(sources, SyntheticSources):
        return sources.start[source_of_edit]
    if rule.start.latent == "inverted":
        return sources.trajectory[:, level][source_of_edit]
    assert noise is not None
    if rule.start.latent == "noise":
        return noise.draw()
    return noised(schedule, sources.trajectory[:, 0][source_of_edit], level, noise.draw())


def _blending(
    rule: EditRule,
    denoiser: Denoiser,
    schedule: DDIMSchedule,
    sources: Sources,
    *,
    asked: Sequence[AskedEdit],
    inputs: Sequence[EditInputs],
    source_of_edit: Tensor,
    noise: EditNoise | None,
    start: Tensor,
) -> Blending:
    """What the rule puts back, with its mask of a difference. `start`: where the edits start."""
    like = sources.start
    inside = given_masks(inputs, like) if rule.inside else None

    def inverted(k: int) -> Tensor:
        assert isinstance(sources, Inversion)
        if rule.image_guidance is not None:  # nothing is inverted, and the start is noise
            return noised(schedule, sources.trajectory[:, 0][source_of_edit], k, start)
        return sources.trajectory[:, k][source_of_edit]

    if rule.blend is None:
        return Blending(None, inside=inside, inverted=inverted)
    found = rule.blend.mask

    def outside(k: int, z_source: Tensor) -> Tensor:
        if isinstance(sources, SyntheticSources):
            return z_source[source_of_edit]
        if rule.blend is not None and rule.blend.outside == "inverted":
            return inverted(k)
        assert noise is not None
        z_0 = sources.trajectory[:, 0][source_of_edit]
        return noised(schedule, z_0, k, noise.draw() if k else z_0)

    if isinstance(found, WordMask):
        first = floor_of(found.start, schedule.steps)
        return Blending(
            outside,
            words=WordMasks(found, len(asked), like),
            first_step=first,
            inside=inside,
            inverted=inverted,
        )
    if isinstance(found, DifferenceMask):
        assert isinstance(sources, Inversion)
        assert noise is not None
        of, sizes = denoiser.text.of, sources.sizes
        prompts = [
            (of(sources.source_prompts[s], sizes[s]), of(target, sizes[s])) for s, target in asked
        ]
        z_0 = sources.trajectory[:, 0][source_of_edit]
        masks = difference_masks(denoiser, schedule, found, z_0, prompts=prompts, noise=noise)
    else:
        masks = given_masks(inputs, like)
    return Blending(outside, masks=masks, inside=inside, inverted=inverted)

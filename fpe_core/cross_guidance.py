"""Sampling that gradients keep near the source's cross-attention maps (pix2pix-zero, Parmar et al.,
SIGGRAPH 2023, arXiv 2302.03027, sec. 3.3).

At every step a source is sampled with its own prompt, and its cross-attention maps are kept until
the end of that step. Every row of its edits is evaluated at a copy of the edit's latent; the copy
descends once on the distance of the row's maps to the source's, and is evaluated again where it is
then. Guidance combines the second outputs, and what is stepped is the moved copy of the
unconditional row, as the authors do. So sources and edits go through the steps together, and no map
outlives its step.

Gradients are needed, so this runs in a place of its own: outside of inference mode and captured
graphs, in float32 or wider, through diffusers' forward pass. Only latents have gradients. The
UNet's own attention processors are put back, whatever is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpe_core.blending import Blending, given_masks
from fpe_core.edit_rows import AskedEdit
from fpe_core.editors.method import EditInputs
from fpe_core.errors import ParameterError
from fpe_core.injection import CrossGuidance, EditRule
from fpe_core.inversion import Inversion, Sources
from fpe_core.parameters import EditParameters
from fpe_core.row_formulas import unconditional_prompt
from fpe_core.sampling import Sampled
from fpe_core.schedule import DDIMSchedule
from fpe_core.unet.prompts import EncodedPrompts
from fpe_core.unet.row_limit import RowLimit

_WITH_GRADIENTS = 8
"""A row with its backward pass and explicit maps takes about so many times the memory of another
one; if it is more, the limit is halved."""


def sample_cross_guided(
    unet: Any,
    schedule: DDIMSchedule,
    rule: EditRule,
    sources: Sources,
    asked: Sequence[AskedEdit],
    *,
    inputs: Sequence[EditInputs],
    parameters: EditParameters,
    text: EncodedPrompts,
    limit: RowLimit,
) -> Sampled:
    """Samples the edits of S sources with a rule that has cross guidance.

    Args:
        unet: diffusers' module, in float32 or wider, without gradients of its own.
        asked: the edits, source by source.
        text: all prompts, those of the rule included.
        limit: of rows without gradients; the rows are counted there, backward passes are not.

    Raises:
        ParameterError: sources that are synthesised beside their edits.
        RowsOutOfMemoryError: a single row with its gradient does not fit.
    """
    assert rule.cross_guidance is not None
    if not isinstance(sources, Inversion):
        raise ParameterError(
            f"{parameters.method.name} edits images; it cannot edit a source that is synthesised "
            "beside its edits"
        )
    # Tensors of inference mode cannot be part of a graph; their copies outside of it can.
    with torch.inference_mode(mode=False), torch.no_grad():
        trajectory = sources.trajectory
        source_of_edit = [edit.source for edit in asked]
        inside = given_masks(inputs, trajectory[:, 0]) if rule.inside else None
        blending = Blending(
            None, inside=inside, inverted=lambda k: trajectory[source_of_edit, k].to(unet.dtype)
        )
        prompts = _prompts(
            text,
            sources,
            asked,
            guidance=rule.cross_guidance,
            parameters=parameters,
            dtype=unet.dtype,
        )
        sampler = _Sampler(
            unet,
            schedule,
            prompts=prompts,
            source_of_edit=source_of_edit,
            size=float(rule.cross_guidance.size),
            parameters=parameters,
            limit=limit,
        )
        z = sampler.run(trajectory[:, -1].clone().to(unet.dtype), blending)
        return Sampled(z.to(trajectory.dtype), sources.start, blending.masks)


class _Prompts(NamedTuple):
    """Embeddings, (..., tokens, width): of the S sources, and of the edits' two rows."""

    sources: Tensor
    unconditional: Tensor
    conditional: Tensor


def _prompts(
    text: EncodedPrompts,
    sources: Inversion,
    asked: Sequence[AskedEdit],
    *,
    guidance: CrossGuidance,
    parameters: EditParameters,
    dtype: torch.dtype,
) -> _Prompts:
    def of(prompts: Sequence[str]) -> Tensor:
        return text.embeddings[[text.of(each) for each in prompts]].clone().to(dtype)

    captions = [sources.source_prompts[edit.source] for edit in asked]
    if guidance.source_sentences:
        direction = of(guidance.target_sentences).mean(0) - of(guidance.source_sentences).mean(0)
        conditional = of(captions) + direction
    else:
        conditional = of([edit.target_prompt for edit in asked])
    free = [unconditional_prompt(parameters, caption) for caption in captions]
    return _Prompts(of(sources.source_prompts), of(free), conditional)


class _Sampler:
    """The sampling of some sources and their edits, which are in the order of their sources.

    What is computed for an edit does not depend on the others.
    """

    def __init__(
        self,
        unet: Any,
        schedule: DDIMSchedule,
        *,
        prompts: _Prompts,
        source_of_edit: Sequence[int],
        size: float,
        parameters: EditParameters,
        limit: RowLimit,
    ) -> None:
        self._unet, self._schedule = unet, schedule
        self._prompts, self._source_of_edit = prompts, list(source_of_edit)
        self._size, self._scale = size, parameters.guidance_scale
        self._guided_steps = parameters.guided_steps
        self._limit, self._at_once = limit, RowLimit(max(1, limit.rows // _WITH_GRADIENTS))

    def run(self, z_source: Tensor, blending: Blending) -> Tensor:
        """z_0 of the edits, from the sources' z_T: (edits, C, h, w)."""
        steps = self._schedule.steps
        z = blending.bound(steps, z_source[self._source_of_edit])
        if not len(z):
            return z
        for step, k in enumerate(reversed(range(steps))):
            reference = _SourceMaps(self._evaluate, self._unet, z_source, k, self._prompts.sources)
            moved, output = self._edits(z, k, reference, is_guided=step in self._guided_steps)
            z = blending.bound(k, self._schedule.sample_step(moved, output, k))
            z_source = reference.sampled(self._schedule)
        return z

    def _edits(
        self, z: Tensor, k: int, reference: _SourceMaps, *, is_guided: bool
    ) -> tuple[Tensor, Tensor]:
        """The latents that are stepped, and the guided outputs there, both (edits, C, h, w)."""
        rows_of_edit = 2 if is_guided else 1
        each = range(len(z))
        edit_of_row = [edit for edit in each for _ in range(rows_of_edit)]
        embeddings = self._prompts.conditional
        if is_guided:
            both = torch.stack([self._prompts.unconditional, self._prompts.conditional], dim=1)
            embeddings = both.flatten(0, 1)

        def part(first: int, last: int) -> Tensor:
            edits, own = edit_of_row[first:last], embeddings[first:last]
            maps = reference.of([self._source_of_edit[edit] for edit in edits])
            moved = self._moved(z[edits], k, own, maps)
            output = self._evaluate(moved, k, own)
            self._limit.evaluated += len(edits)  # those with a gradient
            return torch.cat([moved, output], dim=1)

        made = self._at_once.map(len(edit_of_row), part)
        moved, output = made.chunk(2, dim=1)
        if not is_guided:
            return moved, output
        free, given = output[0::2], output[1::2]
        return moved[0::2], free + self._scale * (given - free)

    def _moved(self, z: Tensor, k: int, embeddings: Tensor, reference: Sequence[Tensor]) -> Tensor:
        """Rows' latents after one step of the descent.

        The loss of a row is the sum over layers, positions and tokens of the squared difference of
        the maps, averaged over the heads of both rows of an edit; also where it has only one, so
        that a step has the same size with and without guidance.
        """
        losses: list[Tensor] = []

        def compare(maps: Tensor) -> None:
            apart = (maps - reference[len(losses)]) ** 2
            losses.append(apart.sum(dim=(2, 3)).mean(dim=1) / 2)

        with torch.enable_grad(), explicit_cross_attention(self._unet, compare):
            x = z.clone().requires_grad_()
            self._forward(x, k, embeddings)
            (slope,) = torch.autograd.grad(torch.stack(losses).sum(), x)
        return z - self._size * slope

    def _evaluate(self, z: Tensor, k: int, embeddings: Tensor) -> Tensor:
        """Rows without gradients; they are counted."""
        output = self._forward(z, k, embeddings)
        self._limit.evaluated += len(z)
        return output

    def _forward(self, z: Tensor, k: int, embeddings: Tensor) -> Tensor:
        made: Tensor = self._unet(
            z, self._schedule.timesteps[k], encoder_hidden_states=embeddings
        ).sample
        return made


class _SourceMaps:
    """The cross-attention maps of the sources at one step, as far as they are still needed.

    A source is evaluated once, when its first edit asks, and is asked for in the order of sources.
    Its unconditional row would be the same row, as both have the caption.
    """

    def __init__(
        self,
        evaluate: Callable[[Tensor, int, Tensor], Tensor],
        unet: Any,
        z: Tensor,
        k: int,
        embeddings: Tensor,
    ) -> None:
        """`z`: the sources' latents, (S, C, h, w)."""
        self._evaluate, self._unet = evaluate, unet
        self._z, self._k, self._embeddings = z, k, embeddings
        self._maps: dict[int, list[Tensor]] = {}
        self._outputs = torch.zeros_like(z)

    def of(self, sources: Sequence[int]) -> list[Tensor]:
        """Of rows with these sources, layer by layer, (rows, heads, positions, tokens)."""
        wanted = sorted(set(sources))
        missing = [source for source in wanted if source not in self._maps]
        if missing:
            seen: list[Tensor] = []
            with explicit_cross_attention(self._unet, seen.append):
                made = self._evaluate(self._z[missing], self._k, self._embeddings[missing])
            self._outputs[missing] = made
            for place, source in enumerate(missing):
                self._maps[source] = [layer[place] for layer in seen]
        for source in [each for each in self._maps if each < wanted[0]]:
            del self._maps[source]
        by_row = zip(*(self._maps[source] for source in sources), strict=True)
        return [torch.stack(layer) for layer in by_row]

    def sampled(self, schedule: DDIMSchedule) -> Tensor:
        """The sources' latents of the next step; of those without edits it means nothing."""
        return schedule.sample_step(self._z, self._outputs, self._k)


@contextmanager
def explicit_cross_attention(unet: Any, observe: Callable[[Tensor], None]) -> Iterator[None]:
    """While it lasts, cross-attentions compute their maps, and `observe` is given them.

    Layer by layer in the order of execution, (rows, heads, positions, tokens), after the softmax.
    """
    own = dict(unet.attn_processors)
    explicit = _ExplicitAttention(observe)
    is_cross = {name: name.endswith("attn2.processor") for name in own}
    try:
        unet.set_attn_processor(
            {name: explicit if is_cross[name] else each for name, each in own.items()}
        )
        yield
    finally:
        unet.set_attn_processor(dict(own))


class _ExplicitAttention:
    """An attention processor of diffusers for cross-attentions of Stable Diffusion 1.x's kind."""

    def __init__(self, observe: Callable[[Tensor], None]) -> None:
        self._observe = observe

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_others: Any
    ) -> Tensor:
        query, key, value = (
            each.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for each in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        maps = (query @ key.transpose(-1, -2) * attn.scale).softmax(dim=-1)
        self._observe(maps)
        projection, dropout = attn.to_out
        output: Tensor = dropout(projection((maps @ value).transpose(1, 2).flatten(2)))
        return output

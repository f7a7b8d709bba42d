"""Null-text inversion (Mokady et al., CVPR 2023, arXiv 2211.09794, algorithm 1).

Guided sampling drifts away from the inversion of an image. Here the embedding of the unconditional
rows is optimised, step by step, so that guided sampling with the source's prompt arrives at the
inversion's latent again. The edits of a source then use these embeddings.

Gradients are needed, so this runs in a place of its own: outside of inference mode and captured
graphs, in float32 or wider, through diffusers' forward pass. Only the embeddings have gradients;
nothing of the network is changed, whatever is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpe_core.row_formulas import NULL_TEXT_ITERATIONS, null_text_name
from fpe_core.schedule import DDIMSchedule
from fpe_core.unet.denoiser import Denoiser
from fpe_core.unet.prompts import EncodedPrompts
from fpe_core.unet.row_limit import RowLimit

_LEARNING_RATE = 1e-2
_STOP_AT, _STOP_RISE = 1e-5, 1e-3
_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's


@dataclass(frozen=True, eq=False)
class NullText:
    """The embeddings of the unconditional rows of S sources at T steps, from the noisy end.

    Attributes:
        embeddings: (S, T, tokens, width), float32 or wider.
        losses: (S, T), mean squared distance of the sampled latent to the inversion's after each
            step, before the last update; 0 at steps without guidance.
        converged: (S, T), bool: whether the loss fell below the step's limit.
    """

    embeddings: Tensor
    losses: Tensor
    converged: Tensor

    def select(self, indices: Sequence[int]) -> NullText:
        """Those of some of the sources, in the given order."""
        places = list(indices)
        return NullText(self.embeddings[places], self.losses[places], self.converged[places])

    def prompts_with(self, text: EncodedPrompts) -> EncodedPrompts:
        """The prompts of a call with these embeddings behind them, one for each source."""
        names = [null_text_name(source) for source in range(len(self.embeddings))]
        return text.and_named(self.embeddings[:, 0], names)

    def change_by_step(self, denoiser: Denoiser) -> None:
        """Has the denoiser use the embeddings of each step."""
        places = [
            denoiser.text.of(null_text_name(source)) for source in range(len(self.embeddings))
        ]
        device = self.embeddings.device
        denoiser.change_prompts(torch.tensor(places, device=device), self.embeddings)

    def in_words(self, source: int) -> str:
        """How well it went for a source."""
        steps, converged = self.converged.shape[1], int(self.converged[source].sum())
        return (
            f"null-text inversion: {converged} of {steps} steps converged, largest loss "
            f"{float(self.losses[source].max()):.1e}"
        )


def optimise_null_text(
    unet: Any,
    schedule: DDIMSchedule,
    trajectory: Tensor,
    *,
    prompts: Tensor,
    empty: Tensor,
    guidance_scale: float,
    guided_steps: range,
    sources_at_once: RowLimit,
) -> tuple[NullText, int]:
    """Optimises the embeddings of S sources, each on its own, a few of them at a time.

    The learning rate of step i of T is 0.01 (1 - i / 2T), and its limit 1e-5 + 1e-3 i / T: as
    published for T = 50. An update follows the loss that fell below the limit, as there.

    Args:
        unet: diffusers' module, in float32 or wider, without gradients of its own.
        trajectory: z_0 .. z_T, (S, T + 1, C, h, w).
        prompts: embeddings of the sources' prompts, (S, tokens, width).
        empty: embedding of the empty prompt, (tokens, width), where the first step starts.
        guidance_scale: of the edits.
        guided_steps: the steps with guidance; at others nothing is optimised.
        sources_at_once: halved if memory runs out.

    Returns:
        the embeddings, and how many UNet rows were evaluated; a backward pass is not counted.

    Raises:
        RowsOutOfMemoryError: a single source does not fit.
    """
    dtype = unet.dtype
    rows, losses, converged = 0, [], []

    def part(first: int, last: int) -> Tensor:
        nonlocal rows
        # Tensors of inference mode cannot be part of a graph; their copies outside of it can.
        with torch.inference_mode(mode=False), torch.enable_grad():
            made = _Optimiser(
                unet,
                schedule,
                trajectory[first:last].clone().to(dtype),
                prompts=prompts[first:last].clone().to(dtype),
                guidance_scale=guidance_scale,
            )
            embeddings = made.run(empty.clone().to(dtype), guided_steps)
        rows += made.rows
        losses.append(made.losses)
        converged.append(made.converged)
        return embeddings

    embeddings = sources_at_once.map(len(trajectory), part)
    return NullText(embeddings, torch.cat(losses), torch.cat(converged)), rows


class _Optimiser:
    """The optimisation of the sources that go through the UNet together.

    What is computed for a source does not depend on the others.
    """

    def __init__(
        self,
        unet: Any,
        schedule: DDIMSchedule,
        trajectory: Tensor,
        *,
        prompts: Tensor,
        guidance_scale: float,
    ) -> None:
        self._unet, self._schedule = unet, schedule
        self._trajectory, self._prompts = trajectory, prompts
        self._scale = guidance_scale
        count, steps = len(trajectory), schedule.steps
        self.rows = 0
        self.losses = torch.zeros(count, steps, dtype=trajectory.dtype, device=trajectory.device)
        self.converged = torch.ones(count, steps, dtype=torch.bool, device=trajectory.device)

    def run(self, empty: Tensor, guided_steps: range) -> Tensor:
        """The embeddings of all steps, (sources, T, tokens, width); the first starts at `empty`."""
        z, steps, made = self._trajectory[:, -1], self._schedule.steps, []
        null = empty.repeat(len(z), 1, 1)
        for step, k in enumerate(reversed(range(steps))):
            with torch.no_grad():
                conditional = self._evaluate(z, k, self._prompts)
            output = conditional
            if step in guided_steps:
                null = self._optimised(null, step, z, conditional)
                with torch.no_grad():
                    output = self._guided(self._evaluate(z, k, null), conditional)
            made.append(null)
            z = self._schedule.sample_step(z, output, k)
        return torch.stack(made, dim=1)

    def _optimised(self, before: Tensor, step: int, z: Tensor, conditional: Tensor) -> Tensor:
        """The embeddings of one step: Adam, from those of the step before."""
        k, share = self._schedule.steps - 1 - step, step / self._schedule.steps
        rate, limit = _LEARNING_RATE * (1 - share / 2), _STOP_AT + _STOP_RISE * share
        null = before.clone()
        mean, square = torch.zeros_like(null), torch.zeros_like(null)
        left = torch.arange(len(null), device=null.device)
        self.converged[:, step] = False
        for number in range(1, NULL_TEXT_ITERATIONS + 1):
            loss, slope = self._loss_of(null[left], left, k, z, conditional)
            mean[left] = _BETAS[0] * mean[left] + (1 - _BETAS[0]) * slope
            square[left] = _BETAS[1] * square[left] + (1 - _BETAS[1]) * slope**2
            first = mean[left] / (1 - _BETAS[0] ** number)
            second = square[left] / (1 - _BETAS[1] ** number)
            null[left] -= rate * first / (second.sqrt() + _EPSILON)
            self.losses[left, step] = loss
            done = loss < limit
            self.converged[left[done], step] = True
            left = left[~done]
            if not len(left):
                break
        return null

    def _loss_of(
        self, null: Tensor, sources: Tensor, k: int, z: Tensor, conditional: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(loss of each source, its gradient) at some of the sources' embeddings."""
        null = null.detach().requires_grad_()
        output = self._guided(self._evaluate(z[sources], k, null), conditional[sources])
        sampled = self._schedule.sample_step(z[sources], output, k)
        loss = ((sampled - self._trajectory[sources, k]) ** 2).flatten(1).mean(dim=1)
        (slope,) = torch.autograd.grad(loss.sum(), null)
        return loss.detach(), slope

    def _evaluate(self, z: Tensor, k: int, embeddings: Tensor) -> Tensor:
        self.rows += len(z)
        made: Tensor = self._unet(
            z, self._schedule.timesteps[k], encoder_hidden_states=embeddings
        ).sample
        return made

    def _guided(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        return unconditional + self._scale * (conditional - unconditional)

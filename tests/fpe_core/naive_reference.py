"""Free-Prompt-Editing as the paper describes it, written to be read and to be slow.

Explicit attention maps, four rows a step (source and target, unconditional and conditional), one
edit at a time, no code shared with `fpe_core`. What the tests hold the engine against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SOURCE_UNCONDITIONAL, SOURCE, TARGET_UNCONDITIONAL, TARGET = range(4)


@dataclass
class Reference:
    """One model and one set of parameters.

    `wrong` breaks the procedure on purpose, for negative controls: "nothing_replaced",
    "unconditional_replaced", "inversion_maps", "cross_attention_replaced".
    """

    unet: object
    text_encoder: object
    tokenizer: object
    steps: int
    guidance_scale: float
    replaced_fraction: float
    is_replaced: Callable[[int, int], bool]
    negative_prompt: str = ""
    wrong: str = ""

    def invert(self, z_0: Tensor, source_prompt: str) -> tuple[list[Tensor], list[list[Tensor]]]:
        """z_0 .. z_T and the self-attention maps of every inversion step."""
        context = self._text(source_prompt)
        trajectory, maps_of_step = [z_0], []
        for k in range(self.steps):
            probe = _Maps()
            epsilon = self._unet(trajectory[-1], k, context, probe)
            maps_of_step.append(probe.self_maps)
            trajectory.append(self._ddim(trajectory[-1], epsilon, self._a(k - 1), self._a(k)))
        return trajectory, maps_of_step

    def edit_real(self, z_0: Tensor, source_prompt: str, target_prompt: str) -> Tensor:
        trajectory, inversion_maps = self.invert(z_0, source_prompt)
        z = trajectory[-1]
        for k in reversed(range(self.steps)):
            _, z = self._step(trajectory[k + 1], z, source_prompt, target_prompt, k, inversion_maps)
        return z

    def edit_synthetic(
        self, noise: Tensor, source_prompt: str, target_prompt: str
    ) -> tuple[Tensor, Tensor]:
        """Final latents of the source and of the edit."""
        z_source = z = noise
        for k in reversed(range(self.steps)):
            z_source, z = self._step(z_source, z, source_prompt, target_prompt, k, [])
        return z_source, z

    def _step(
        self,
        z_source: Tensor,
        z: Tensor,
        source_prompt: str,
        target_prompt: str,
        k: int,
        inversion_maps: list[list[Tensor]],
    ) -> tuple[Tensor, Tensor]:
        latents = torch.cat([z_source, z_source, z, z])
        empty = self._text(self.negative_prompt)
        context = torch.cat([empty, self._text(source_prompt), empty, self._text(target_prompt)])
        replacing = (self.steps - 1 - k) < int(self.steps * self.replaced_fraction)
        if not replacing or self.wrong == "nothing_replaced":
            maps = _Maps()
        else:
            maps = _Maps(
                replace=self.is_replaced,
                also_unconditional=self.wrong == "unconditional_replaced",
                also_cross=self.wrong == "cross_attention_replaced",
                given=inversion_maps[k] if self.wrong == "inversion_maps" else None,
            )
        epsilon = self._unet(latents, k, context, maps)
        source, target = (
            epsilon[u : u + 1] + self.guidance_scale * (epsilon[c : c + 1] - epsilon[u : u + 1])
            for u, c in ((SOURCE_UNCONDITIONAL, SOURCE), (TARGET_UNCONDITIONAL, TARGET))
        )
        return tuple(
            self._ddim(latent, guided, self._a(k), self._a(k - 1))
            for latent, guided in ((z_source, source), (z, target))
        )

    def _a(self, k: int) -> float:
        """Cumulative alpha at timestep t_k; below the first timestep, the schedule's first."""
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
        return float(np.cumprod(1 - betas)[self._t(k) if k >= 0 else 0])

    def _t(self, k: int) -> int:
        return k * (1000 // self.steps) + 1

    @staticmethod
    def _ddim(z: Tensor, epsilon: Tensor, a_from: float, a_to: float) -> Tensor:
        z_0 = (z - (1 - a_from) ** 0.5 * epsilon) / a_from**0.5
        return a_to**0.5 * z_0 + (1 - a_to) ** 0.5 * epsilon

    def _text(self, prompt: str) -> Tensor:
        window = self.tokenizer.model_max_length
        ids = self.tokenizer(
            prompt, padding="max_length", max_length=window, truncation=True, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids)[0]

    def _unet(self, latents: Tensor, k: int, context: Tensor, maps: _Maps) -> Tensor:
        own = dict(self.unet.attn_processors)
        self.unet.set_attn_processor(maps)
        try:
            with torch.no_grad():
                return self.unet(latents, self._t(k), encoder_hidden_states=context).sample
        finally:
            self.unet.set_attn_processor(own)


class _Maps:
    """One attention processor for all layers: materialises every map and may exchange it."""

    def __init__(
        self,
        replace: Callable[[int, int], bool] = lambda _position, _tokens: False,
        also_unconditional: bool = False,
        also_cross: bool = False,
        given: list[Tensor] | None = None,
    ) -> None:
        self.replace = replace
        self.also_unconditional = also_unconditional
        self.also_cross = also_cross
        self.given = given
        self.self_maps: list[Tensor] = []
        self.cross_layers = 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_kwargs):
        is_self = encoder_hidden_states is None
        context = hidden_states if is_self else encoder_hidden_states
        query, key, value = (
            project.view(*project.shape[:2], attn.heads, -1).transpose(1, 2)
            for project in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        maps = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
        if is_self:
            self.self_maps.append(maps)
            position = len(self.self_maps)
        else:
            self.cross_layers += 1
            position = self.cross_layers
        if self.replace(position, hidden_states.shape[1]) and (is_self or self.also_cross):
            maps = maps.clone()
            given = self.given[position - 1][0] if self.given is not None and is_self else None
            maps[TARGET] = maps[SOURCE] if given is None else given
            if self.also_unconditional:
                maps[TARGET_UNCONDITIONAL] = maps[SOURCE]
        attended = (maps @ value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](attended))

"""Free-Prompt-Editing as its authors' code runs it (arXiv 2403.03431): readable, and slow.

Written from the description: explicit attention maps, one edit at a time, nothing shared between
edits. An inversion step evaluates two rows (unconditional and conditional, guidance 1), an editing
step four (source and target, each unconditional and conditional): six rows a step, 300 an edit at
fifty steps. It shares no code with the rest of `fpe_core`. The tests compare the editor with it,
and `fpe bench speed` compares its speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SOURCE_UNCONDITIONAL, SOURCE, TARGET_UNCONDITIONAL, TARGET = range(4)
"""The rows of an editing step, in order."""

MISTAKES = (
    "nothing_replaced",
    "wrong_layers",
    "unconditional_replaced",
    "cross_attention_replaced",
    "inversion_maps",
    "source_not_pinned",
    "one_step_off",
)
"""Values of `Reference.wrong`: deliberate mistakes in the procedure, for negative controls."""


@dataclass(frozen=True)
class Reference:
    """One model and one set of parameters.

    Attributes:
        unet, text_encoder, tokenizer: diffusers' and transformers' own objects.
        steps, guidance_scale, replaced_fraction, negative_prompt: as in `EditParameters`.
        is_replaced: whether a self-attention layer takes the source's map, by its position (from 1,
            in order of execution) and its number of tokens.
        prediction_type: what the UNet's output is, "epsilon" or "v_prediction".
        wrong: "", or one of `MISTAKES`, made on purpose.
        second: tokenizer and text encoder that Stable Diffusion XL has besides. Its pictures are
            taken to have the size of the edit, with nothing cut off.
        empty_is_zero: an empty prompt is an embedding of zeros, in XL.
    """

    unet: Any
    text_encoder: Any
    tokenizer: Any
    steps: int
    guidance_scale: float
    replaced_fraction: float
    is_replaced: Callable[[int, int], bool]
    negative_prompt: str = ""
    prediction_type: str = "epsilon"
    wrong: str = ""
    second: tuple[Any, Any] | None = None
    empty_is_zero: bool = False

    def __post_init__(self) -> None:
        if self.wrong and self.wrong not in MISTAKES:
            raise ValueError(f"unknown mistake {self.wrong!r}; there are {', '.join(MISTAKES)}")

    @torch.no_grad()
    def invert(self, z_0: Tensor, source_prompt: str) -> tuple[list[Tensor], list[list[Tensor]]]:
        """z_0 .. z_T, each (1, C, h, w); and every step's maps, kept for "inversion_maps" only."""
        context = self._context([self.negative_prompt, source_prompt])
        trajectory, maps_of_step = [z_0], []
        for k in range(self.steps):
            probe = _Maps(kept_row=1 if self.wrong == "inversion_maps" else None)
            z = trajectory[-1]
            unconditional, conditional = self._unet(torch.cat([z, z]), k, context, probe).chunk(2)
            output = unconditional + 1.0 * (conditional - unconditional)
            maps_of_step.append(probe.kept)
            trajectory.append(self._ddim(z, output, self._a(k - 1), self._a(k)))
        return trajectory, maps_of_step

    @torch.no_grad()
    def edit_inverted(
        self,
        inversion: tuple[list[Tensor], list[list[Tensor]]],
        source_prompt: str,
        target_prompt: str,
    ) -> Tensor:
        """The final latent (1, C, h, w) of one edit of what `invert` returned."""
        trajectory, inversion_maps = inversion
        context = self._context(self._prompts(source_prompt, target_prompt))
        z_source = z = trajectory[-1]
        for k in reversed(range(self.steps)):
            if self.wrong != "source_not_pinned":
                z_source = trajectory[k if self.wrong == "one_step_off" else k + 1]
            z_source, z = self._step(z_source, z, context, k, inversion_maps)
        return z

    def edit_real(self, z_0: Tensor, source_prompt: str, target_prompt: str) -> Tensor:
        """The final latent of one edit of an image's latent z_0, both (1, C, h, w)."""
        return self.edit_inverted(self.invert(z_0, source_prompt), source_prompt, target_prompt)

    @torch.no_grad()
    def edit_synthetic(
        self, noise: Tensor, source_prompt: str, target_prompt: str
    ) -> tuple[Tensor, Tensor]:
        """Final latents of the source and of the edit."""
        context = self._context(self._prompts(source_prompt, target_prompt))
        z_source = z = noise
        for k in reversed(range(self.steps)):
            z_source, z = self._step(z_source, z, context, k, [])
        return z_source, z

    def _step(
        self,
        z_source: Tensor,
        z: Tensor,
        context: _Context,
        k: int,
        inversion_maps: list[list[Tensor]],
    ) -> tuple[Tensor, Tensor]:
        latents = torch.cat([z_source, z_source, z, z])
        output = self._unet(latents, k, context, self._maps_of_step(k, inversion_maps))
        source, target = (
            output[u : u + 1] + self.guidance_scale * (output[c : c + 1] - output[u : u + 1])
            for u, c in ((SOURCE_UNCONDITIONAL, SOURCE), (TARGET_UNCONDITIONAL, TARGET))
        )
        a_from, a_to = self._a(k), self._a(k - 1)
        return self._ddim(z_source, source, a_from, a_to), self._ddim(z, target, a_from, a_to)

    def _maps_of_step(self, k: int, inversion_maps: list[list[Tensor]]) -> _Maps:
        replacing = (self.steps - 1 - k) < int(self.steps * self.replaced_fraction + 1e-9)
        if not replacing or self.wrong == "nothing_replaced":
            return _Maps()
        rule = self.is_replaced
        if self.wrong == "wrong_layers":
            return _Maps(replace=lambda position, tokens: not rule(position, tokens))
        return _Maps(
            replace=rule,
            also_unconditional=self.wrong == "unconditional_replaced",
            also_cross=self.wrong == "cross_attention_replaced",
            given=inversion_maps[k] if self.wrong == "inversion_maps" else None,
        )

    def _a(self, k: int) -> float:
        """Cumulative alpha at timestep t_k; below the first timestep, the schedule's first."""
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
        return float(np.cumprod(1 - betas)[self._t(k) if k >= 0 else 0])

    def _t(self, k: int) -> int:
        return k * (1000 // self.steps) + 1

    def _ddim(self, z: Tensor, output: Tensor, a_from: float, a_to: float) -> Tensor:
        epsilon = output
        if self.prediction_type == "v_prediction":
            epsilon = a_from**0.5 * output + (1 - a_from) ** 0.5 * z
        z_0 = (z - (1 - a_from) ** 0.5 * epsilon) / a_from**0.5
        moved: Tensor = a_to**0.5 * z_0 + (1 - a_to) ** 0.5 * epsilon
        return moved

    def _prompts(self, source_prompt: str, target_prompt: str) -> list[str]:
        return [self.negative_prompt, source_prompt, self.negative_prompt, target_prompt]

    def _context(self, prompts: list[str]) -> _Context:
        rows = [self._text(prompt) for prompt in prompts]
        return _Context(
            torch.cat([embedding for embedding, _ in rows]),
            None if self.second is None else torch.cat([pooled for _, pooled in rows]),
        )

    def _text(self, prompt: str) -> tuple[Tensor, Any]:
        """The embedding, (1, tokens, width), and in XL the pooled one, (1, width)."""
        first = _encoded(self.tokenizer, self.text_encoder, prompt)
        if self.second is None:
            return first[0], None
        second = _encoded(*self.second, prompt)
        kept = 0.0 if self.empty_is_zero and not prompt else 1.0
        both = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return kept * both, kept * second.text_embeds

    def _unet(self, latents: Tensor, k: int, context: _Context, maps: _Maps) -> Tensor:
        own = dict(self.unet.attn_processors)
        self.unet.set_attn_processor(maps)
        try:
            output: Tensor = self.unet(
                latents,
                self._t(k),
                encoder_hidden_states=context.embeddings,
                added_cond_kwargs=context.beside(latents),
            ).sample
        finally:
            self.unet.set_attn_processor(own)
        return output


@dataclass(frozen=True)
class _Context:
    """The prompts of some rows: (rows, tokens, width), and in XL pooled, (rows, width)."""

    embeddings: Tensor
    pooled: Tensor | None

    def beside(self, latents: Tensor) -> dict[str, Tensor] | None:
        """What XL's UNet is given besides: the size before, nothing cut off, the size after."""
        if self.pooled is None:
            return None
        edges = [8 * edge for edge in latents.shape[-2:]]
        sizes = torch.tensor([[*edges, 0, 0, *edges]] * len(self.pooled), device=latents.device)
        return {"text_embeds": self.pooled, "time_ids": sizes.float()}


def _encoded(tokenizer: Any, text_encoder: Any, prompt: str) -> Any:
    window = tokenizer.model_max_length
    ids = tokenizer(
        prompt, padding="max_length", max_length=window, truncation=True, return_tensors="pt"
    ).input_ids
    return text_encoder(ids.to(text_encoder.device), output_hidden_states=True)


class _Maps:
    """One attention processor for all layers: computes every map explicitly and may replace it."""

    def __init__(
        self,
        replace: Callable[[int, int], bool] = lambda _position, _tokens: False,
        also_unconditional: bool = False,
        also_cross: bool = False,
        given: list[Tensor] | None = None,
        kept_row: int | None = None,
    ) -> None:
        """`given`: maps to inject. `kept_row`: the row whose self-attention maps are kept."""
        self.replace = replace
        self.also_unconditional = also_unconditional
        self.also_cross = also_cross
        self.given = given
        self.kept_row = kept_row
        self.kept: list[Tensor] = []
        self.self_layers = self.cross_layers = 0

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_kwargs: Any,
    ) -> Tensor:
        is_self = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            project.view(*project.shape[:2], attn.heads, -1).transpose(1, 2)
            for project in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        maps = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)
        self._exchange(maps, is_self, hidden_states.shape[1])
        attended = (maps @ value).transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[1](attn.to_out[0](attended))
        return out

    def _exchange(self, maps: Tensor, is_self: bool, tokens: int) -> None:
        """Copies the source's map over the target's, if this layer is replaced."""
        if is_self:
            self.self_layers += 1
            position = self.self_layers
            if self.kept_row is not None:
                self.kept.append(maps[self.kept_row])
        else:
            self.cross_layers += 1
            position = self.cross_layers
        if self.replace(position, tokens) and (is_self or self.also_cross):
            given = self.given[position - 1] if self.given is not None and is_self else None
            maps[TARGET] = maps[SOURCE] if given is None else given
            if self.also_unconditional:
                maps[TARGET_UNCONDITIONAL] = maps[SOURCE]

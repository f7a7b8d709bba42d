"""Free-Prompt-Editing as one would write it with diffusers: the baseline, without batching.

Stock attention kernels (scaled_dot_product_attention), diffusers' own scheduler, two-row inversion,
four-row edit, and one processor that gives the target's conditional row the source's Q and K.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn import functional

from fpe_core import Checkpoint, EditParameters
from fpe_core.checkpoint.autoencoder import latent_dtype
from fpe_core.noise_levels import is_trailing, training_levels
from fpe_core.unet.attention import select_layers, self_attention_layers

_SOURCE, _TARGET = 2, 3
"""UNet rows of an editing step: source and target, each unconditional and conditional."""


class _Context(NamedTuple):
    """Embeddings of prompts, (rows, tokens, width); of Stable Diffusion XL also pooled ones."""

    embeddings: Tensor
    pooled: Tensor | None

    def beside(self, latents: Tensor) -> dict[str, Tensor] | None:
        """diffusers' added_cond_kwargs for pictures that were neither scaled nor cut."""
        if self.pooled is None:
            return None
        edges = [8 * edge for edge in latents.shape[-2:]]
        sizes = torch.tensor([[*edges, 0, 0, *edges]] * len(latents), device=latents.device)
        return {"text_embeds": self.pooled, "time_ids": sizes.float()}


class PlainLoop:
    """One checkpoint and the parameters of its edits; latents are (1, C, h, w)."""

    def __init__(self, checkpoint: Checkpoint, parameters: EditParameters) -> None:
        self._checkpoint = checkpoint
        self._parameters = parameters
        self._scheduler = plain_scheduler(checkpoint)
        self._scheduler.set_timesteps(parameters.steps)

    def invert(self, z_0: Tensor, source_prompt: str) -> list[Tensor]:
        """z_0 .. z_T: DDIM backwards, with guidance 1."""
        context = self._encode([self._parameters.negative_prompt, source_prompt])
        trajectory = [z_0]
        for timestep in self._scheduler.timesteps.flip(0).tolist():
            z = trajectory[-1]
            unconditional, conditional = self._unet(torch.cat([z] * 2), timestep, context).chunk(2)
            output = unconditional + 1.0 * (conditional - unconditional)
            trajectory.append(self._next(z, output, timestep))
        return trajectory

    def edit(self, trajectory: list[Tensor], source_prompt: str, target_prompt: str) -> Tensor:
        """The final latent of one edit."""
        parameters = self._parameters
        empty = parameters.negative_prompt
        context = self._encode([empty, empty, source_prompt, target_prompt])
        z = trajectory[-1]
        timesteps = self._scheduler.timesteps.tolist()
        steps = list(zip(timesteps, reversed(trajectory), strict=False))  # no step starts at z_0
        with self._source_maps(z):
            for timestep, z_source in steps[: parameters.replaced_steps]:
                z = self._step(z_source, z, timestep, context)
        for timestep, z_source in steps[parameters.replaced_steps :]:
            z = self._step(z_source, z, timestep, context)
        return z

    def _step(self, z_source: Tensor, z: Tensor, timestep: int, context: _Context) -> Tensor:
        output = self._unet(torch.cat([z_source, z] * 2), timestep, context)
        unconditional, conditional = output.chunk(2)
        guided = unconditional + self._parameters.guidance_scale * (conditional - unconditional)
        moved: Tensor = self._scheduler.step(guided[1:], timestep, z).prev_sample
        return moved

    def _next(self, z: Tensor, output: Tensor, timestep: int) -> Tensor:
        """One DDIM step towards noise, from the level before `timestep` to its own."""
        scheduler = self._scheduler
        before = timestep - scheduler.config.num_train_timesteps // self._parameters.steps
        alphas = scheduler.alphas_cumprod
        a_from = float(alphas[before] if before >= 0 else scheduler.final_alpha_cumprod)
        a_to = float(alphas[timestep])
        if scheduler.config.prediction_type == "v_prediction":
            clean = a_from**0.5 * z - (1 - a_from) ** 0.5 * output
            epsilon = a_from**0.5 * output + (1 - a_from) ** 0.5 * z
        else:
            clean, epsilon = (z - (1 - a_from) ** 0.5 * output) / a_from**0.5, output
        moved: Tensor = a_to**0.5 * clean + (1 - a_to) ** 0.5 * epsilon
        return moved

    def _unet(self, latents: Tensor, timestep: int, context: _Context) -> Tensor:
        output: Tensor = self._checkpoint.unet(
            latents.to(self._checkpoint.dtype),
            timestep,
            encoder_hidden_states=context.embeddings,
            added_cond_kwargs=context.beside(latents),
        ).sample
        return output.to(latent_dtype(self._checkpoint))

    def _encode(self, prompts: list[str]) -> _Context:
        own = self._checkpoint
        first = self._output(own.tokenizer, own.text_encoder, prompts)
        if own.text_encoder_2 is None:
            return _Context(first[0], None)
        second = self._output(own.tokenizer_2, own.text_encoder_2, prompts)
        embeddings = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        if own.empty_prompt_is_zero:
            kept = torch.tensor([[float(prompt != "")] for prompt in prompts]).to(pooled)
            embeddings, pooled = embeddings * kept[:, :, None], pooled * kept
        return _Context(embeddings, pooled)

    def _output(self, tokenizer: Any, text_encoder: Any, prompts: list[str]) -> Any:
        ids = tokenizer(
            prompts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return text_encoder(ids.to(self._checkpoint.device), output_hidden_states=True)

    def _source_maps(self, z: Tensor) -> AbstractContextManager[None]:
        unet = self._checkpoint.unet
        layers = select_layers(self_attention_layers(unet, *z.shape[-2:]), self._parameters.layers)
        swap = _SourceQueriesAndKeys()
        return processors(unet, {layer.processor_name: swap for layer in layers})


@contextmanager
def processors(unet: Any, changed: Mapping[str, Any]) -> Iterator[None]:
    """Puts these attention processors, by name, into a UNet, and its own back at the end."""
    own = dict(unet.attn_processors)
    unet.set_attn_processor({**own, **changed})
    try:
        yield
    finally:
        unet.set_attn_processor(own)


def heads_of(attn: Any, projected: Tensor) -> Tensor:
    """(rows, tokens, heads * d) of diffusers' Attention to (rows, heads, tokens, d)."""
    return projected.view(*projected.shape[:2], attn.heads, -1).transpose(1, 2)


def attention_output(attn: Any, attended: Tensor) -> Tensor:
    """(rows, heads, tokens, d) to what diffusers' Attention returns."""
    out: Tensor = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
    return out


def plain_scheduler(checkpoint: Checkpoint) -> Any:
    """diffusers' DDIMScheduler for a checkpoint, its table of noise levels in float64.

    diffusers adds the table up in float32. With many steps, small models enlarge that rounding
    error beyond the gate's tolerance, but the gate is meant to compare procedures, not rounding.
    """
    kind: Any = DDIMScheduler
    scheduler = kind.from_config(
        {**checkpoint.scheduler_config},
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing" if is_trailing(checkpoint.scheduler_config) else "leading",
    )
    scheduler.alphas_cumprod = torch.from_numpy(training_levels(checkpoint.scheduler_config))
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


class _SourceQueriesAndKeys:
    """diffusers' AttnProcessor2_0, with the target's Q and K taken from the source's row."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **_options: Any) -> Tensor:
        query, key = attn.to_q(hidden_states), attn.to_k(hidden_states)
        query[_TARGET], key[_TARGET] = query[_SOURCE], key[_SOURCE]
        attended = functional.scaled_dot_product_attention(
            heads_of(attn, query), heads_of(attn, key), heads_of(attn, attn.to_v(hidden_states))
        )
        return attention_output(attn, attended)

"""p2p, pnp and masactrl as one would write them with diffusers: the baselines, without batching.

Each keeps the order of its authors' code: the source is inverted once, then one edit is sampled
after the other, and every step has the source's rows before the target's. As in our editor the
source's latent at every step is that of its inversion, and the inversion is not guided, so that it
takes one row a step. Attention is the stock kernel (scaled_dot_product_attention) but where maps
themselves are changed (p2p), which needs them explicitly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fpe_core import Checkpoint, EditParameters, ParameterError
from fpe_core.editors.masactrl import MasaCtrl
from fpe_core.editors.method import NOTHING
from fpe_core.editors.p2p import PromptToPrompt
from fpe_core.editors.pnp import PlugAndPlay
from fpe_core.injection import floor_of, steps_between
from fpe_core.layer_rules import LayerRule, LayersByPart
from fpe_core.unet.attention import select_layers, self_attention_layers
from fpe_core.unet.text_encoders import token_ids
from jobs.bench.speed.plain_loop import PlainLoop, attention_output, heads_of, processors


class PlainMethod(PlainLoop):
    """Base of the three; latents are (1, C, h, w).

    UNet rows of a source with N edits in T steps: T + (G + 2) T N, with G rows of the source.
    """

    def invert(self, z_0: Tensor, source_prompt: str) -> list[Tensor]:
        """z_0 .. z_T: DDIM backwards without guidance."""
        context = self._encode([source_prompt])
        trajectory = [z_0]
        for timestep in self._scheduler.timesteps.flip(0).tolist():
            z = trajectory[-1]
            trajectory.append(self._next(z, self._unet(z, timestep, context), timestep))
        return trajectory

    def edit(self, trajectory: list[Tensor], source_prompt: str, target_prompt: str) -> Tensor:
        """The final latent of one edit."""
        negative, scale = self._parameters.negative_prompt, self._parameters.guidance_scale
        givers = self._source_rows(source_prompt)
        context = self._encode([*givers, negative, target_prompt])
        z = trajectory[-1]
        for step, (timestep, z_source) in enumerate(
            zip(self._scheduler.timesteps.tolist(), reversed(trajectory), strict=False)
        ):
            with self._injecting(step, z):
                rows = torch.cat([z_source] * len(givers) + [z, z])
                unconditional, conditional = self._unet(rows, timestep, context)[-2:].chunk(2)
            guided = unconditional + scale * (conditional - unconditional)
            z = self._scheduler.step(guided, timestep, z).prev_sample
        return z

    def _source_rows(self, source_prompt: str) -> list[str]:
        """The prompts of the source's rows, which stand before the two of the target."""
        raise NotImplementedError

    def _injecting(self, step: int, z: Tensor) -> AbstractContextManager[None]:
        """Lets the source's rows give to the target's; steps count from 0 at the noisy end."""
        raise NotImplementedError

    def _layers(self, rule: LayerRule, z: Tensor) -> list[str]:
        """The names of the processors of self-attention layers."""
        layers = self_attention_layers(self._checkpoint.unet, *z.shape[-2:])
        return [layer.processor_name for layer in select_layers(layers, rule)]


class PlainPromptToPrompt(PlainMethod):
    """Refined maps of cross-attention and maps of self-attention; without blend words."""

    def edit(self, trajectory: list[Tensor], source_prompt: str, target_prompt: str) -> Tensor:
        """The final latent of one edit; words are matched once for all of its steps."""
        self._mixed_maps = self._mix(trajectory[0], source_prompt, target_prompt)
        return super().edit(trajectory, source_prompt, target_prompt)

    def _source_rows(self, source_prompt: str) -> list[str]:
        return [self._parameters.negative_prompt, source_prompt]

    @contextmanager
    def _injecting(self, step: int, z: Tensor) -> Iterator[None]:
        method, unet, steps = self._parameters.method, self._checkpoint.unet, self._parameters.steps
        assert isinstance(method, PromptToPrompt)
        changed: dict[str, _Maps] = {}
        if step < floor_of(method.cross_fraction, steps):
            crossed = [name for name in unet.attn_processors if "attn2" in name]
            changed |= dict.fromkeys(crossed, self._mixed_maps)
        if step < floor_of(method.self_fraction, steps):
            changed |= dict.fromkeys(self._layers(method.layers, z), _Maps())
        with processors(unet, changed):
            yield

    def _mix(self, z: Tensor, source_prompt: str, target_prompt: str) -> _Maps:
        """Maps whose columns are brought to the target's words; the matrices are of z's dtype."""
        tokenizer = self._checkpoint.tokenizer
        mix = self._parameters.method.token_mix(
            partial(token_ids, tokenizer),
            int(tokenizer.model_max_length),
            source_prompt,
            target_prompt,
            NOTHING,
        )
        return _Maps(*(torch.from_numpy(each).to(z) for each in (mix.given, mix.own)))


class PlainPlugAndPlay(PlainMethod):
    """One row of the source without a prompt gives maps and a residual to both rows."""

    def _source_rows(self, source_prompt: str) -> list[str]:
        del source_prompt
        return [""]

    @contextmanager
    def _injecting(self, step: int, z: Tensor) -> Iterator[None]:
        method, unet = self._parameters.method, self._checkpoint.unet
        assert isinstance(method, PlugAndPlay)
        attention, residual = (
            floor_of(share, self._parameters.steps)
            for share in (method.attention_fraction, method.residual_fraction)
        )
        swap = _FromSource((0, 0, 0), "qk")
        names = self._layers(method.layers, z) if step < attention else []
        handle = None
        if step < residual:
            handle = _block_of(unet, method.residual_layers).conv2.register_forward_hook(_repeated)
        try:
            with processors(unet, dict.fromkeys(names, swap)):
                yield
        finally:
            if handle is not None:
                handle.remove()


class PlainMasaCtrl(PlainMethod):
    """Keys and values of the source, from its unconditional and from its conditional row."""

    def _source_rows(self, source_prompt: str) -> list[str]:
        return [self._parameters.negative_prompt, source_prompt]

    @contextmanager
    def _injecting(self, step: int, z: Tensor) -> Iterator[None]:
        method, steps = self._parameters.method, self._parameters.steps
        assert isinstance(method, MasaCtrl)
        active = steps_between(method.steps, steps)
        names = self._layers(method.layers, z) if step in active else []
        with processors(
            self._checkpoint.unet, dict.fromkeys(names, _FromSource((0, 1, 0, 1), "kv"))
        ):
            yield


PLAIN = {"p2p": PlainPromptToPrompt, "pnp": PlainPlugAndPlay, "masactrl": PlainMasaCtrl}
"""The methods that have a plain loop."""


def plain_loop(checkpoint: Checkpoint, parameters: EditParameters) -> PlainMethod:
    """The plain loop of the parameters' method. Raises ParameterError for a method without one."""
    name = parameters.method.name
    if name not in PLAIN:
        raise ParameterError(f"no plain loop of {name}; there are {', '.join(PLAIN)}")
    return PLAIN[name](checkpoint, parameters)


class _Maps:
    """Explicit maps; the last row takes those of row 1, the source's conditional one.

    With `given` (tokens, tokens) and `own` (tokens,) the map is A_source given + A_target own.
    """

    def __init__(self, given: Tensor | None = None, own: Tensor | None = None) -> None:
        self._given, self._own = given, own

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_options: Any,
    ) -> Tensor:
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = heads_of(attn, attn.to_q(hidden_states))
        key, value = heads_of(attn, attn.to_k(seen)), heads_of(attn, attn.to_v(seen))
        maps = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)
        if self._given is None:
            maps[-1] = maps[1]
        else:
            maps[-1] = maps[1] @ self._given + maps[-1] * self._own
        return attention_output(attn, maps @ value)


class _FromSource:
    """Self-attention in which every row takes queries, keys or values of another row."""

    def __init__(self, rows: Sequence[int], takes: str) -> None:
        """`rows`: for every row, which one gives. `takes`: of "q", "k" and "v"."""
        self._rows, self._takes = list(rows), takes

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **_options: Any) -> Tensor:
        def projected(name: str, projection: Any) -> Tensor:
            own = projection(hidden_states)
            return heads_of(attn, own[self._rows] if name in self._takes else own)

        query, key = projected("q", attn.to_q), projected("k", attn.to_k)
        attended = functional.scaled_dot_product_attention(query, key, projected("v", attn.to_v))
        return attention_output(attn, attended)


def _block_of(unet: Any, rule: LayerRule) -> Any:
    """The residual block in front of one self-attention going up."""
    if not isinstance(rule, LayersByPart) or rule.part != "up" or rule.first != rule.last:
        raise ParameterError(f"the plain loop of pnp takes one block going up, not {rule}")
    blocks = [
        block.resnets[number]
        for block in unet.up_blocks
        if hasattr(block, "attentions")
        for number in range(len(block.attentions))
    ]
    return blocks[rule.first - 1]


def _repeated(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
    """What the source's block adds, for all rows."""
    return output[:1].expand_as(output).contiguous()

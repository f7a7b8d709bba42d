"""The editors as their papers describe them: explicit attention maps, one edit at a time, slow.

Nothing is shared between edits, every row is evaluated in full, and no code of `fpe_core` is used
but the checkpoint's own networks. `wrong` names a deliberate mistake, for negative controls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import Tensor
from torch.nn import functional

from fpe_core import Checkpoint

Maps = Callable[[bool, int, Tensor, Tensor, Tensor], Tensor]
"""(is it self-attention, layer from 1, query, key, value) to what each query attends to; all are
(rows, heads, tokens, d)."""


@dataclass(frozen=True)
class Places:
    """Where the editors exchange something in a family's UNet.

    Attributes:
        middle: layers of 32 x 32 tokens and fewer at the family's size.
        of_pnp, of_masactrl: layers going up.
        residual: (block, number) of a residual block going up.
        quarter: layers whose grid is a quarter of the latent's in each direction.
    """

    middle: Collection[int]
    of_pnp: Collection[int]
    of_masactrl: Collection[int]
    residual: tuple[int, int]
    quarter: Collection[int]


FIRST = Places(range(3, 14), range(9, 17), range(11, 17), (1, 1), (5, 6, 8, 9, 10))
XL = Places(range(5, 65), range(45, 71), range(45, 71), (0, 1), range(5, 65))
WINDOW = 77

_TEXTS: dict[Any, Tensor] = {}
_TRAJECTORIES: dict[Any, list[Tensor]] = {}
"""What was computed before; the tests ask for the same again and again."""


@dataclass
class Naive:
    """One model with a number of steps and a guidance scale.

    Attributes:
        rows: UNet rows evaluated so far.
        mask: that of the last edit, (h, w), if it has one.
        bound: a mask that binds, (h, w), and the trajectory of its source.
        maps: noise maps of an edit-friendly inversion, of the steps that are sampled.
        sizes: of a picture that was cut, what Stable Diffusion XL is told of it.
        near: of proximal guidance, (norm, quantile, pull) and the trajectory of the source.
    """

    checkpoint: Checkpoint
    steps: int
    guidance: float = 7.5
    negative: str = ""
    wrong: str = ""
    mask: Tensor | None = field(default=None, init=False)
    bound: tuple[Tensor, list[Tensor]] | None = field(default=None, init=False)
    maps: list[Tensor] | None = field(default=None, init=False)
    sizes: tuple[int, ...] = field(default=(), init=False)
    near: tuple[tuple[str, float, float], list[Tensor]] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
        config = self.checkpoint.scheduler_config
        self._is_trailing = config.get("timestep_spacing") == "trailing"
        self._reaches_noise = bool(config.get("rescale_betas_zero_snr"))
        if self._reaches_noise:
            betas = rescale_zero_terminal_snr(torch.from_numpy(betas)).numpy()
        self._levels = np.cumprod(1 - betas)
        self.places = FIRST if self.checkpoint.text_encoder_2 is None else XL

    def a(self, k: int) -> float:
        """Cumulative alpha of level k: 0 is clean, k + 1 belongs to timestep t_k."""
        return float(self._levels[self.t(k - 1) if k else 0])

    def t(self, k: int) -> int:
        if self._is_trailing:
            return round(1000 - (self.steps - 1 - k) * 1000 / self.steps) - 1
        return k * (1000 // self.steps) + 1

    def text(self, prompt: str) -> Tensor:
        key = id(self.checkpoint), prompt
        if key not in _TEXTS:
            _TEXTS[key] = self._encoded(prompt)
        return _TEXTS[key]

    def _encoded(self, prompt: str) -> Tensor:
        tokenizer, encoder = self.checkpoint.tokenizer, self.checkpoint.text_encoder
        if self.checkpoint.text_encoder_2 is None:
            embedding: Tensor = _output(tokenizer, encoder, prompt)[0]
            return embedding
        second = self.checkpoint.tokenizer_2, self.checkpoint.text_encoder_2
        both = _output(tokenizer, encoder, prompt), _output(*second, prompt)
        embedding = torch.cat([each.hidden_states[-2] for each in both], dim=-1)
        return embedding * 0 if self._is_zero(prompt) else embedding

    def pooled(self, prompt: str) -> Tensor:
        """What Stable Diffusion XL sees of a prompt as a whole, (1, width)."""
        output = _output(self.checkpoint.tokenizer_2, self.checkpoint.text_encoder_2, prompt)
        pooled: Tensor = output.text_embeds
        return pooled * 0 if self._is_zero(prompt) else pooled

    def _is_zero(self, prompt: str) -> bool:
        return prompt == "" and self.checkpoint.empty_prompt_is_zero

    def beside(self, latents: Sequence[Tensor], prompts: Sequence[str]) -> dict[str, Any]:
        """What its UNet is given besides: the prompts, and sizes of pictures that were not cut."""
        if self.checkpoint.text_encoder_2 is None:
            return {}
        edges = 8 * latents[0].shape[2], 8 * latents[0].shape[3]
        own = self.sizes or (*edges, 0, 0, *edges)
        sizes = torch.tensor([own] * len(prompts), dtype=torch.float32)
        pooled = torch.cat([self.pooled(each) for each in prompts])
        return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}

    def move(self, z: Tensor, epsilon: Tensor, level_from: int, level_to: int) -> Tensor:
        b = self.a(level_to)
        clean, epsilon = self.apart(z, epsilon, level_from)
        moved: Tensor = b**0.5 * clean + (1 - b) ** 0.5 * epsilon
        return moved

    def apart(self, z: Tensor, output: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """(clean latent, epsilon) in a latent. Of epsilon alone there is no clean latent at pure
        noise, so with such levels the outputs stay v."""
        a = self.a(level)
        if self._reaches_noise:
            return a**0.5 * z - (1 - a) ** 0.5 * output, a**0.5 * output + (1 - a) ** 0.5 * z
        return (z - (1 - a) ** 0.5 * output) / a**0.5, output

    def noised(self, z_0: Tensor, k: int, noise: Tensor) -> Tensor:
        return z_0 if k == 0 else self.a(k) ** 0.5 * z_0 + (1 - self.a(k)) ** 0.5 * noise

    def noise(self, seed: int, like: Tensor, count: int) -> list[Tensor]:
        """The first draws of a seed, each like a latent."""
        generator = torch.Generator().manual_seed(seed)
        shape = like.shape[1:]
        draws = [torch.randn(shape, generator=generator) for _ in range(count)]
        return [draw[None].to(like) for draw in draws]

    @torch.no_grad()
    def invert(self, z_0: Tensor, prompt: str, levels: int | None = None) -> list[Tensor]:
        """z_0 .. z_K, each (1, C, h, w)."""
        key = id(self.checkpoint), self.steps, prompt, self.sizes, z_0.numpy().tobytes()
        trajectory = _TRAJECTORIES.setdefault(key, [z_0])
        wanted = self.steps if levels is None else levels
        for k in range(len(trajectory) - 1, wanted):
            output = self.unet([trajectory[-1]], k, [prompt], level=k)
            trajectory.append(self.move(trajectory[-1], output, k, k + 1))
        return trajectory[: wanted + 1]

    @torch.no_grad()
    def unet(
        self,
        latents: Sequence[Tensor],
        k: int,
        prompts: Sequence[str],
        attend: Maps | None = None,
        *,
        level: int | None = None,
    ) -> Tensor:
        """epsilon of rows, each a latent with a prompt, at timestep t_k.

        What a model predicts as v is epsilon at the latents' level: k + 1, in an inversion k. With
        levels that reach pure noise it stays v (see `apart`).
        """
        unet, context = self.checkpoint.unet, torch.cat([self.text(each) for each in prompts])
        own = dict(unet.attn_processors)
        unet.set_attn_processor(_Explicit(attend or plain))
        try:
            made: Tensor = unet(
                torch.cat(list(latents)),
                self.t(k),
                encoder_hidden_states=context,
                **self.beside(latents, prompts),
            ).sample
        finally:
            unet.set_attn_processor(own)
        is_v = self.checkpoint.scheduler_config["prediction_type"] == "v_prediction"
        if is_v and not self._reaches_noise:
            a = self.a(k + 1 if level is None else level)
            made = a**0.5 * made + (1 - a) ** 0.5 * torch.cat(list(latents))[:, : made.shape[1]]
        return made

    def guided(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        made: Tensor = unconditional + self.guidance * (conditional - unconditional)
        return made

    # --- the editors -----------------------------------------------------------------------------

    def ddim(
        self, trajectory: list[Tensor], target: str, negative: str | list[str] | None = None
    ) -> Tensor:
        return self.sample(trajectory[-1], len(trajectory) - 1, target, negative=negative)

    def fpe(
        self,
        trajectory: list[Tensor],
        source: str,
        target: str,
        replaced: int,
        layers: Collection[int] = (),
        negative: str | list[str] | None = None,
    ) -> Tensor:
        """The source's self-attention maps onto the conditional row."""

        def row(step: int) -> tuple[list[str], Maps]:
            def attend(is_self: bool, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Any:
                maps = map_of(query, key)
                if is_self and layer in (layers or self.places.middle) and step < replaced:
                    maps[-1] = maps[0]
                return maps @ value

            return [source], attend

        return self.with_source(trajectory, target, row, negative=negative)

    def sdedit(self, z_0: Tensor, target: str, strength: float, seed: int) -> Tensor:
        levels = int(self.steps * strength + 1e-9)
        if self.wrong == "level":
            levels += 1
        noise = self.noise(seed + (self.wrong == "seed"), z_0, 1)[0]
        return self.sample(self.noised(z_0, levels, noise), levels, target)

    def p2p(
        self,
        trajectory: list[Tensor],
        source: str,
        target: str,
        *,
        given: Tensor,
        own: Tensor,
        cross: int,
        within: int,
        words: tuple[Sequence[int], Sequence[int]] | None = None,
        threshold: float = 0.3,
        start: int = 0,
        negative: str | list[str] | None = None,
    ) -> Tensor:
        """Maps of both attentions onto the conditional row; `words`: places of the words' tokens.

        `given`: (source tokens, target tokens), `own`: (target tokens,): the edited map is
        A_source @ given + A_target * own.
        """
        height, width = trajectory[0].shape[-2:]
        seen = torch.zeros(2, height // 4 * (width // 4), dtype=trajectory[0].dtype)

        def row(step: int) -> tuple[list[str], Maps]:
            def attend(is_self: bool, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Any:
                maps = map_of(query, key)
                layers = range(1, 17) if self.wrong == "all_layers" else self.places.middle
                if is_self and layer in layers and step < within and self.wrong != "no_self":
                    maps[-1] = maps[0]
                if not is_self and step < cross and self.wrong != "no_cross":
                    mixed = (
                        maps[0] if self.wrong == "unaligned" else maps[0] @ given + maps[-1] * own
                    )
                    maps[-1] = mixed
                    if self.wrong == "unconditional":
                        maps[-2] = maps[0]
                if not is_self and words is not None and layer in self.places.quarter:
                    seen[0] += maps[0][:, :, list(words[0])].sum(-1).mean(0)
                    seen[1] += maps[-1][:, :, list(words[1])].sum(-1).mean(0)
                return maps @ value

            return [source], attend

        def blend(step: int, k: int, z: Tensor) -> Tensor:
            if words is None or step < start or self.wrong == "no_blend":
                return z
            maps = seen.view(2, 1, height // 4, width // 4)
            maps = functional.max_pool2d(maps, 3, stride=1, padding=1)
            maps = functional.interpolate(maps, size=(height, width), mode="nearest")
            maps = maps / maps.amax(dim=(2, 3), keepdim=True)
            mask = (maps[0] > threshold) | (maps[1] > threshold)
            self.mask = mask[0]
            kept = trajectory[k + 1 if self.wrong == "noisier" else k]
            return kept + mask * (z - kept)

        return self.with_source(trajectory, target, row, blend, negative=negative)

    def pnp(
        self, trajectory: list[Tensor], target: str, *, attention: int, residual: int
    ) -> Tensor:
        """One source row without a prompt onto both rows: maps of layers 9-16, one residual."""

        def row(step: int) -> tuple[list[str], Maps]:
            def attend(is_self: bool, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Any:
                maps = map_of(query, key)
                places = self.places
                layers = places.of_masactrl if self.wrong == "layers" else places.of_pnp
                if is_self and layer in layers and step < attention:
                    maps[-1] = maps[0]
                    if self.wrong != "conditional_only":
                        maps[-2] = maps[0]
                return maps @ value

            return ["snow" if self.wrong == "source_prompt" else ""], attend

        def exchange(step: int) -> Any:
            def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
                if step >= residual or self.wrong == "no_residual":
                    return output
                return torch.cat([output[:1]] * 3)

            block, number = self.places.residual
            resnet = self.checkpoint.unet.up_blocks[block].resnets[number]
            return resnet.conv2.register_forward_hook(hook)

        return self.with_source(trajectory, target, row, hook=exchange)

    def masactrl(
        self,
        trajectory: list[Tensor],
        source: str,
        target: str,
        *,
        start: int,
        union: bool = False,
        layers: Collection[int] = (),
    ) -> Tensor:
        """Keys and values of the source: conditional from conditional, unconditional likewise."""

        def row(step: int) -> tuple[list[str], Maps]:
            def attend(is_self: bool, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Any:
                there = layers or self.places.of_masactrl
                if not is_self or layer not in there or step < start:
                    return plain(is_self, layer, query, key, value)
                givers = [0, 1, 0, 1] if self.wrong != "conditional_gives_all" else [0, 1, 1, 1]
                their_key, their_value = key[givers], value[givers]
                if self.wrong == "queries":
                    return map_of(query[givers], key[givers]) @ value
                if union:
                    # The source's own rows are not changed.
                    both = torch.cat([key, their_key], 2), torch.cat([value, their_value], 2)
                    made = map_of(query, both[0]) @ both[1]
                    made[:2] = plain(is_self, layer, query[:2], key[:2], value[:2])
                    return made
                return map_of(query, their_key) @ their_value

            return [self.negative, source], attend

        return self.with_source(trajectory, target, row)

    def diffedit(
        self,
        trajectory: list[Tensor],
        source: str,
        target: str,
        *,
        seed: int,
        samples: int = 10,
        strength: float = 0.5,
        encode: float = 0.8,
        mask: Tensor | None = None,
        threshold: float = 0.5,
    ) -> Tensor:
        if mask is None:
            level = int(self.steps * strength + 1e-9)
            total = torch.zeros(trajectory[0].shape[-2:], dtype=trajectory[0].dtype)
            for noise in self.noise(seed, trajectory[0], samples):
                z = self.noised(trajectory[0], level, noise)
                one, other = self.unet([z, z], level - 1, [source, target])
                total += (one - other).abs().mean(0)
            mean = total / samples
            limit = 3 * mean.mean() if self.wrong != "unlimited" else mean.max()
            mask = mean.clamp(max=float(limit)) / limit > threshold
        if self.wrong == "other_mask":
            mask = ~mask
        self.mask = mask
        levels = int(self.steps * encode + 1e-9)

        def blend(_step: int, k: int, z: Tensor) -> Tensor:
            kept = trajectory[k + 1 if self.wrong == "noisier" else k]
            return torch.where(mask, z, kept)

        return self.sample(trajectory[levels], levels, target, blend)

    def blended(self, z_0: Tensor, target: str, mask: Tensor, seed: int) -> Tensor:
        start, *others = self.noise(seed, z_0, self.steps)

        def blend(step: int, k: int, z: Tensor) -> Tensor:
            if self.wrong == "one_noise":
                return torch.where(mask, z, self.noised(z_0, k, start))
            if self.wrong == "noisier":
                return torch.where(mask, z, self.noised(z_0, k + 1, start))
            return torch.where(mask, z, self.noised(z_0, k, others[step] if k else start))

        return self.sample(start, self.steps, target, blend)

    def kept(self, z: Tensor, k: int) -> Tensor:
        """z_k with the source's own outside of a mask that binds."""
        if self.bound is None or (self.wrong == "free_start" and k == self.steps):
            return z
        mask, trajectory = self.bound
        if self.wrong == "only_at_the_end" and k:
            return z
        return torch.where(mask, z, trajectory[max(0, k - 1) if self.wrong == "cleaner" else k])

    def negatives(self, negative: str | list[str] | None) -> list[str]:
        """The prompt of the unconditional row at each step, from the noisy end."""
        if isinstance(negative, list):
            return negative
        return [self.negative if negative is None else negative] * self.steps

    def null_text(self, trajectory: list[Tensor], source: str) -> list[str]:
        """Names of the optimised embeddings of every step: arXiv 2211.09794, algorithm 1."""
        trajectory = [each.clone() for each in trajectory]  # some are from inference mode
        z, names = trajectory[self.steps], []
        null = self.text("").clone()
        unet = self.checkpoint.unet
        for step, k in enumerate(reversed(range(self.steps))):
            share = step / self.steps
            target = trajectory[k + 1 if self.wrong == "noisier_target" else k]
            with torch.no_grad():
                given = unet(z, self.t(k), encoder_hidden_states=self.text(source)).sample
            null = null.clone().requires_grad_()
            adam = torch.optim.Adam([null], lr=1e-2 * (1 - share / 2))
            for _ in range(3 if self.wrong == "few_iterations" else 10):
                free = unet(z, self.t(k), encoder_hidden_states=null).sample
                made = self.move(z, self.guided(free, given), k + 1, k)
                loss = functional.mse_loss(made, target)
                adam.zero_grad()
                loss.backward()
                adam.step()
                if loss.item() < 1e-5 + 1e-3 * share:
                    break
            null = null.detach()
            if self.wrong == "not_carried_on":
                null = self.text("").clone()
            with torch.no_grad():
                free = unet(z, self.t(k), encoder_hidden_states=null).sample
                z = self.move(z, self.guided(free, given), k + 1, k)
            names.append(f"null {id(self)} {source} {step}")
            _TEXTS[id(self.checkpoint), names[-1]] = null
        return names

    @torch.no_grad()
    def edit_friendly(
        self, z_0: Tensor, source: str, *, seed: int, guidance: float, levels: int
    ) -> list[Tensor]:
        """z_0 .. z_K with independent noise; keeps the noise maps: arXiv 2304.06140, algorithm 1.

        In its terms x_(t-1) = mu + sigma z, and what is kept is sigma z.
        """
        draws = self.noise(seed + (self.wrong == "other_noise"), z_0, levels)
        if self.wrong == "one_noise":
            draws = [draws[0]] * levels
        latents = [z_0, *(self.noised(z_0, k, draw) for k, draw in enumerate(draws, start=1))]
        self.maps = []
        for k in range(levels):
            free, given = self.unet([latents[k + 1]] * 2, k, [self.negative, source]).split(1)
            epsilon = free + guidance * (given - free)
            sigma = self.sigma(k)
            z = (latents[k] - self.mean(latents[k + 1], epsilon, k)) / sigma
            self.maps.append(sigma * z)
        if self.wrong != "noise_at_the_end":
            self.maps[0] = torch.zeros_like(z_0)
        return latents

    def sigma(self, k: int) -> float:
        """Standard deviation of the DDPM step to level k."""
        a, b = self.a(k + 1), self.a(k)
        return float(((1 - b) / (1 - a) * (1 - a / b)) ** 0.5)

    def mean(self, z: Tensor, epsilon: Tensor, k: int) -> Tensor:
        """Of the DDPM step to level k."""
        b = self.a(k)
        clean, epsilon = self.apart(z, epsilon, k + 1)
        made: Tensor = b**0.5 * clean + (1 - b - self.sigma(k) ** 2) ** 0.5 * epsilon
        return made

    def shrunk(self, difference: Tensor) -> Tensor:
        """The difference of two predictions by the proximal operator of a norm."""
        assert self.near is not None
        norm, quantile, _ = self.near[0]
        threshold = float(np.quantile(difference.abs().double().numpy(), quantile))
        if norm == "l1":
            shrunk: Tensor = functional.softshrink(difference, threshold)
            return shrunk
        return torch.where(difference.abs() > threshold, difference, 0.0)

    def pulled(self, z: Tensor, shrunk: Tensor, k: int) -> Tensor:
        """z_k moved to the source's where nothing was kept within one position."""
        assert self.near is not None
        (_, _, pull), trajectory = self.near
        if self.t(k) >= 400 and self.wrong != "pulled_from_the_start":
            return z
        kept = (shrunk != 0).any(1, keepdim=True).double()
        if self.wrong != "not_grown":
            kept = functional.max_pool2d(kept, 3, 1, 1)
        return torch.where(kept > 0, z, (1 - pull) * z + pull * trajectory[k])

    # --- sampling --------------------------------------------------------------------------------

    def step(self, z: Tensor, unconditional: Tensor, conditional: Tensor, k: int) -> Tensor:
        """z_(k+1) and two predictions to z_k."""
        difference = conditional - unconditional
        if self.near is not None:
            difference = self.shrunk(difference)
        epsilon = unconditional + self.guidance * difference
        if self.maps is not None:
            z = self.mean(z, epsilon, k) + self.maps[k]
        else:
            z = self.move(z, epsilon, k + 1, k)
        return z if self.near is None else self.pulled(z, difference, k)

    def sample(
        self,
        z: Tensor,
        levels: int,
        target: str,
        blend: Callable[[int, int, Tensor], Tensor] | None = None,
        negative: str | list[str] | None = None,
    ) -> Tensor:
        """From level `levels` down to z_0, with no row of a source."""
        negatives = self.negatives(negative)
        z = self.kept(z, levels)
        for k in reversed(range(levels)):
            outputs = self.unet([z, z], k, [negatives[self.steps - 1 - k], target])
            z = self.step(z, outputs[:1], outputs[1:], k)
            z = self.kept(z if blend is None else blend(self.steps - 1 - k, k, z), k)
        return z

    def with_source(
        self,
        trajectory: list[Tensor],
        target: str,
        row: Callable[[int], tuple[list[str], Maps]],
        blend: Callable[[int, int, Tensor], Tensor] | None = None,
        hook: Callable[[int], Any] | None = None,
        negative: str | list[str] | None = None,
    ) -> Tensor:
        """From z_T down: the source's rows first, then the unconditional and the conditional one.

        `row`: a step to the prompts of the source's rows, and what attentions do.
        """
        negatives = self.negatives(negative)
        levels = len(trajectory) - 1
        z = trajectory[levels]
        for k in reversed(range(levels)):
            step = self.steps - 1 - k
            prompts, attend = row(step)
            pinned = trajectory[k if self.wrong == "one_step_off" else k + 1]
            handle = None if hook is None else hook(step)
            outputs = self.unet(
                [*[pinned] * len(prompts), z, z], k, [*prompts, negatives[step], target], attend
            )
            if handle is not None:
                handle.remove()
            z = self.step(z, outputs[-2:-1], outputs[-1:], k)
            z = self.kept(z if blend is None else blend(step, k, z), k)
        return z


@torch.no_grad()
def _output(tokenizer: Any, encoder: Any, prompt: str) -> Any:
    ids = tokenizer(
        prompt, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt"
    ).input_ids
    return encoder(ids, output_hidden_states=True)


def map_of(query: Tensor, key: Tensor) -> Tensor:
    return torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1)


def plain(_is_self: bool, _layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return map_of(query, key) @ value


class _Explicit:
    """One attention processor for all layers, which counts them."""

    def __init__(self, attend: Maps) -> None:
        self._attend = attend
        self._layers = {True: 0, False: 0}

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_kwargs: Any,
    ) -> Tensor:
        is_self = encoder_hidden_states is None
        self._layers[is_self] += 1
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            each.view(*each.shape[:2], attn.heads, -1).transpose(1, 2)
            for each in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        made = self._attend(is_self, self._layers[is_self], query, key, value)
        out: Tensor = attn.to_out[1](attn.to_out[0](made.transpose(1, 2).flatten(2)))
        return out


@contextmanager
def counted_rows(checkpoint: Checkpoint) -> Any:
    """Counts rows behind the UNet's first cross-attention, which has all of them, call by call.

    Behind, as rows whose map is their source's need not compute queries.
    """
    calls: list[int] = []
    block = next(each for each in checkpoint.unet.down_blocks if hasattr(each, "attentions"))
    attention = block.attentions[0].transformer_blocks[0].attn2.to_out[0]
    handle = attention.register_forward_pre_hook(lambda _module, args: calls.append(len(args[0])))
    try:
        yield calls
    finally:
        handle.remove()

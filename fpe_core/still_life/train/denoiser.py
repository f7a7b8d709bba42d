"""Trains UNet and text encoder together to predict the noise in latents; averages the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from fpe_core.still_life.scene import FULL_PHRASINGS, PHRASINGS, Scene, caption
from fpe_core.still_life.train import workers
from fpe_core.still_life.train.architecture import TOKENS, build_scheduler
from fpe_core.still_life.train.half_copy import HalfCopy
from fpe_core.still_life.train.progress import Budget, Run

_PEAK_LR = 1.5e-3
_SCENES_PER_STEP = 16  # in each process
_EMPTY_CAPTION_RATE = 0.1
_FULL_PHRASING_RATE = 0.8
_MIN_SNR_GAMMA = 5.0
_RECORD_EVERY_STEPS = 50


class NoisePredictor(torch.nn.Module):
    """The two trained networks as one: (noisy latents, timesteps, token ids) to predicted noise."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, token_ids: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.text_encoder(token_ids).last_hidden_state
        predicted: torch.Tensor = self.unet(noisy, timesteps, hidden).sample
        return predicted


M = TypeVar("M", bound=torch.nn.Module)


class Average(Generic[M]):
    """An exponential moving average of a module's weights, over few updates at first."""

    def __init__(self, module: M, longest_decay: float = 0.998) -> None:
        self.module: M = copy.deepcopy(module).eval().requires_grad_(False)
        self.longest_decay = longest_decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: M) -> None:
        decay = min(self.longest_decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1.0 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["weights"])
        self.updates = state["updates"]


def half_copy(denoiser: NoisePredictor, *, compiled: bool) -> HalfCopy[NoisePredictor]:
    """The bfloat16 copy; compiling the UNet takes minutes and makes GroupNorm fast too."""

    def prepare(copied: NoisePredictor) -> None:
        copied.unet.set_attn_processor(AttnProcessor())  # explicit maps
        copied.text_encoder.set_attn_implementation("eager")
        if compiled:
            copied.unet.compile()

    return HalfCopy(denoiser, prepare)


def train_denoiser(
    denoiser: NoisePredictor,
    latents: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    folder: Path,
    budget: Budget,
    device: torch.device,
    seed: int = 0,
    lr_scale: float = 1.0,
    compiled: bool = True,
) -> Iterator[tuple[Run, NoisePredictor]]:
    """Trains in place and yields (run, averaged weights) after every step and at the end.

    `latents` is (N, 4, 16, 16) at unit scale; `token_ids` is (N + 1, phrasings, 32) from
    `tokenize_captions`.
    """
    denoiser.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = Average(denoiser)
    half = half_copy(denoiser, compiled=compiled)
    peak_lr = _PEAK_LR * lr_scale
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.01
    )
    state = {"denoiser": denoiser, "average": average}
    run = Run("denoiser", folder, budget, optimizer, peak_lr, state)
    noise_schedule = build_scheduler().alphas_cumprod.to(device)
    losses: list[float] = []
    for step in run.steps():
        rng = np.random.default_rng((seed, step, workers.rank()))
        torch.manual_seed(int(rng.integers(2**31)))
        clean, tokens = _batch(latents, token_ids, rng)
        timesteps = spread_timesteps(len(clean), rng).to(device)
        loss = _loss(half.fresh(), clean.to(device), tokens.to(device), timesteps, noise_schedule)
        loss.backward()
        half.hand_over_gradients()
        workers.average_gradients(denoiser.parameters())
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        average.update(denoiser)
        losses.append(float(loss.detach()))
        if len(losses) == _RECORD_EVERY_STEPS:
            run.record(loss=float(np.mean(losses)))
            losses.clear()
        yield run, average.module
    yield run, average.module  # also if the budget was spent before this start


def tokenize_captions(tokenizer: CLIPTokenizer, scenes: list[Scene]) -> torch.Tensor:
    """Every phrasing of every scene, then a row of empty captions: (N + 1, phrasings, 32)."""
    texts = [caption(scene, k) for scene in scenes for k in range(len(PHRASINGS))]
    texts += [""] * len(PHRASINGS)
    unique = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    ids = tokenizer(
        list(unique), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    rows: torch.Tensor = ids[[unique[text] for text in texts]]
    return rows.view(len(scenes) + 1, len(PHRASINGS), TOKENS)


def _batch(
    latents: torch.Tensor, token_ids: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and a caption for each: mostly a full one, sometimes a partial or an empty one."""
    size = _SCENES_PER_STEP
    chosen = torch.from_numpy(rng.integers(len(latents), size=size))
    full = rng.random(size) < _FULL_PHRASING_RATE
    phrasing = np.where(
        full,
        np.maximum(rng.integers(-FULL_PHRASINGS, FULL_PHRASINGS, size), 0),  # 0 is the likeliest
        rng.integers(FULL_PHRASINGS, len(PHRASINGS), size),
    )
    empty = torch.from_numpy(rng.random(size) < _EMPTY_CAPTION_RATE)
    captioned = torch.where(empty, torch.tensor(len(latents)), chosen)
    return latents[chosen], token_ids[captioned, torch.from_numpy(phrasing)]


def spread_timesteps(size: int, rng: np.random.Generator) -> torch.Tensor:
    """One uniform draw from each of `size` equal parts of 0..999, for a less noisy loss."""
    return torch.from_numpy(((np.arange(size) + rng.random(size)) * (1000 / size)).astype(np.int64))


def min_snr_loss(
    predict: Callable[[torch.Tensor], torch.Tensor],
    clean: torch.Tensor,
    timesteps: torch.Tensor,
    noise_schedule: torch.Tensor,
    *,
    most_for_clean: float = 0.0,
) -> torch.Tensor:
    """Squared error of the noise with min-SNR weights (Hang et al. 2023, equation 5).

    What is to be sampled can be known however noisy the latent is, from a source picture for one;
    then the error of the clean latent counts as well, whose weight as an error of the noise is
    1 / SNR, at most `most_for_clean`.

    Args:
        predict: noisy latents, like `clean`, to the predicted noise, of any precision.
        clean: latents at unit scale: (B, 4, H, W) float32.
        timesteps: the noise level of each: (B,) int64.
        noise_schedule: cumulative alphas, (1000,) float32.
        most_for_clean: 0 for the error of the noise alone.
    """
    kept = noise_schedule[timesteps].view(-1, 1, 1, 1)
    noise = torch.randn_like(clean)
    predicted = predict(kept.sqrt() * clean + (1.0 - kept).sqrt() * noise)
    error = ((predicted.float() - noise) ** 2).mean(dim=(1, 2, 3))
    snr = (kept / (1.0 - kept)).flatten()
    weight = torch.clamp(snr, max=_MIN_SNR_GAMMA) / snr + torch.clamp(1 / snr, max=most_for_clean)
    return torch.mean(error * weight)


def _loss(
    denoiser: NoisePredictor,
    clean: torch.Tensor,
    tokens: torch.Tensor,
    timesteps: torch.Tensor,
    noise_schedule: torch.Tensor,
) -> torch.Tensor:
    def predict(noisy: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = denoiser(noisy.to(torch.bfloat16), timesteps, tokens)
        return predicted

    return min_snr_loss(predict, clean, timesteps, noise_schedule)

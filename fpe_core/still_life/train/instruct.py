"""Trains the built-in model with instructions:
`python -m fpe_core.still_life.train.instruct --out DIR`.

    encode      pairs of scenes that differ in one factor, once
    train       the built-in UNet, with four more input channels for the source's latent
    export      a diffusers folder, every ten minutes and at the end

The method is InstructPix2Pix's (Brooks et al. 2023, arXiv 2211.09800, section 3.2): the source's
latent mode, not scaled, is appended to the noisy latent; the weights that see it start at zero;
5 % of the steps' rows have no image, 5 % no instruction, 5 % neither. Autoencoder, text encoder and
tokenizer are the built-in model's, unchanged, so that both models share them: the instructions'
new words are several tokens each, and the words that matter are one.

It may be killed at any time: the same command continues each stage from its last snapshot.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from fpe_core.checkpoint.files import CHECKPOINT_DIR
from fpe_core.editors.instruct_pix2pix import InstructPix2Pix
from fpe_core.parameters import EditParameters
from fpe_core.still_life.train import workers
from fpe_core.still_life.train.architecture import IMAGE_SIZE_PX, build_scheduler
from fpe_core.still_life.train.choose_defaults import recommendation
from fpe_core.still_life.train.data import FIRST_TRAINING_SEED
from fpe_core.still_life.train.denoiser import Average, min_snr_loss, spread_timesteps
from fpe_core.still_life.train.export import replace_folder
from fpe_core.still_life.train.half_copy import HalfCopy
from fpe_core.still_life.train.instruct_data import PHRASINGS, Pairs, training_pairs
from fpe_core.still_life.train.progress import Budget, Run, log_into, write_json

_PEAK_LR = 9e-4
_PAIRS_PER_STEP = 32  # in each process
_CANONICAL_RATE = 0.4
_DROPPED = 0.05  # each of: the image, the instruction, both
_MOST_FOR_CLEAN = 20.0
_RECORD_EVERY_STEPS = 50
_EXPORT_EVERY_S = 600.0
_SHARED = ("vae", "text_encoder", "tokenizer", "scheduler")
_KEPT = ("README.md", "fpe_defaults.json", "validation.json")


_UNTIL_CHOSEN = EditParameters(
    steps=25, guidance_scale=3.0, width_px=IMAGE_SIZE_PX, height_px=IMAGE_SIZE_PX
).edited_by(InstructPix2Pix())
"""Recommended until `fpe_core.still_life.train.choose_instruct` has chosen."""


def widened(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The UNet with twice the input channels; what it computes without them stays the same.

    The weights that see the new channels are zero, as in InstructPix2Pix. A UNet that has them
    already is given back as it is.
    """
    channels = int(unet.config.in_channels)
    if channels == 2 * int(unet.config.out_channels):
        return unet
    wide = UNet2DConditionModel.from_config({**unet.config, "in_channels": 2 * channels})
    weights = unet.state_dict()
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first, torch.zeros_like(first)], dim=1)
    wide.load_state_dict(weights)
    return wide


def half_copy(unet: UNet2DConditionModel, *, compiled: bool) -> HalfCopy[UNet2DConditionModel]:
    """The bfloat16 copy; compiling takes minutes and makes GroupNorm fast too."""

    def prepare(copied: UNet2DConditionModel) -> None:
        copied.set_attn_processor(AttnProcessor())  # explicit maps
        if compiled:
            copied.compile()

    return HalfCopy(unet, prepare)


def train_unet(
    unet: UNet2DConditionModel,
    pairs: Pairs,
    scaling_factor: float,
    *,
    folder: Path,
    budget: Budget,
    device: torch.device,
    seed: int = 0,
    compiled: bool = True,
) -> Iterator[tuple[Run, UNet2DConditionModel]]:
    """Trains in place and yields (run, averaged weights) after every step and at the end."""
    unet.to(device, memory_format=torch.channels_last).train()
    average = Average(unet)
    half = half_copy(unet, compiled=compiled)
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=_PEAK_LR, betas=(0.9, 0.99), weight_decay=0.01
    )
    state = {"unet": unet, "average": average}
    run = Run("instruct", folder, budget, optimizer, _PEAK_LR, state)
    kept = build_scheduler().alphas_cumprod.to(device)
    losses: list[float] = []
    for step in run.steps():
        rng = np.random.default_rng((seed, step, workers.rank()))
        torch.manual_seed(int(rng.integers(2**31)))
        source, target, hidden = (part.to(device) for part in _batch(pairs, rng))
        loss = _loss(half.fresh(), source, target * scaling_factor, hidden, kept=kept, rng=rng)
        loss.backward()
        half.hand_over_gradients()
        workers.average_gradients(unet.parameters())
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update(unet)
        losses.append(float(loss.detach()))
        if len(losses) == _RECORD_EVERY_STEPS:
            run.record(loss=float(np.mean(losses)))
            losses.clear()
        yield run, average.module
    yield run, average.module  # also if the budget was spent before this start


def _batch(
    pairs: Pairs, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sources (B, 4, 16, 16), targets and hidden states (B, 32, 128), some sources and some hidden
    states dropped."""
    size = _PAIRS_PER_STEP
    chosen = torch.from_numpy(rng.choice(len(pairs), size=size, p=pairs.chance))
    phrasing = np.where(rng.random(size) < _CANONICAL_RATE, 0, rng.integers(PHRASINGS, size=size))
    sentence = pairs.sentence[chosen, torch.from_numpy(phrasing)]
    drawn = torch.from_numpy(rng.random(size))
    has_image = (drawn >= _DROPPED) & ~((drawn >= 2 * _DROPPED) & (drawn < 3 * _DROPPED))
    has_text = (drawn < _DROPPED) | (drawn >= 3 * _DROPPED)
    source = pairs.latents[pairs.source[chosen]] * has_image.view(-1, 1, 1, 1)
    hidden = pairs.hidden[torch.where(has_text, sentence, 0)]
    return source, pairs.latents[pairs.target[chosen]], hidden


def _loss(
    unet: UNet2DConditionModel,
    source: torch.Tensor,
    clean: torch.Tensor,
    hidden: torch.Tensor,
    *,
    kept: torch.Tensor,
    rng: np.random.Generator,
) -> torch.Tensor:
    timesteps = spread_timesteps(len(clean), rng).to(clean.device)

    def predict(noisy: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([noisy, source], dim=1).to(torch.bfloat16)
        predicted: torch.Tensor = unet(seen, timesteps, hidden.to(torch.bfloat16)).sample
        return predicted

    return min_snr_loss(predict, clean, timesteps, kept, most_for_clean=_MOST_FOR_CLEAN)


def train(
    out: Path,
    budget: Budget,
    *,
    start_from: Path = CHECKPOINT_DIR,
    first_unet: Path | None = None,
    groups: int = 4_000,
    seed: int = 0,
    compiled: bool = True,
) -> dict[str, Any]:
    """Runs or resumes in `out`, exports to `out/checkpoint`, returns the figures.

    Args:
        start_from: the model whose UNet it starts with, and whose other parts it keeps.
        first_unet: folder of another UNet to start with: of four input channels, or of eight from
            an earlier training. Only read where `out` has no snapshot.
        groups: how many training scenes, each with one edit of every factor.
        compiled: False saves the minutes that compiling takes, for a training of a few steps.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    autoencoder = AutoencoderKL.from_pretrained(start_from / "vae", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(start_from / "text_encoder", dtype=torch.float32)
    pairs = training_pairs(
        groups,
        autoencoder.eval().to(memory_format=torch.channels_last),
        text_encoder.eval(),
        CLIPTokenizer.from_pretrained(start_from / "tokenizer"),
        out,
    )
    unet = widened(
        UNet2DConditionModel.from_pretrained(
            first_unet or start_from / "unet", torch_dtype=torch.float32
        )
    )
    figures: dict[str, Any] = {
        "seed": seed,
        "first_training_seed": FIRST_TRAINING_SEED,
        "scenes": groups,
        "pairs": len(pairs),
        "processes": workers.count(),
        "pairs_per_step": _PAIRS_PER_STEP * workers.count(),
    }
    exported_at = time.monotonic()
    for run, average in train_unet(
        unet,
        pairs,
        float(autoencoder.config.scaling_factor),
        folder=out,
        budget=budget,
        device=device,
        seed=seed,
        compiled=compiled,
    ):
        loss = run.curve[-1]["loss"] if run.curve else None
        figures |= {"steps": run.step, "seconds": run.seconds, "loss": loss}
        if workers.rank() == 0 and time.monotonic() - exported_at > _EXPORT_EVERY_S:
            export_instruct(out / "checkpoint", average, figures, start_from)
            exported_at = time.monotonic()
    if workers.rank() == 0:
        export_instruct(out / "checkpoint", average, figures, start_from)
    return figures


def export_instruct(
    folder: Path, unet: UNet2DConditionModel, figures: dict[str, Any], shared_with: Path
) -> None:
    """Replaces `folder` by the UNet in float16, with the other model's parts beside it: a folder
    for `StableDiffusionInstructPix2PixPipeline`. Its model card and parameters stay."""
    fresh = folder.with_name(f"{folder.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    copy.deepcopy(unet).cpu().eval().to(torch.float16).save_pretrained(fresh / "unet")
    config = json.loads((fresh / "unet" / "config.json").read_text())
    config.pop("_name_or_path", None)  # a folder of this machine
    write_json(fresh / "unet" / "config.json", config)
    for part in _SHARED:
        shutil.copytree(shared_with / part, fresh / part)
    write_json(
        fresh / "model_index.json",
        {
            "_class_name": "StableDiffusionInstructPix2PixPipeline",
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    write_json(fresh / "fpe_defaults.json", recommendation(_UNTIL_CHOSEN))
    write_json(fresh / "training.json", figures)
    replace_folder(folder, fresh, keep=_KEPT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--minutes", type=float, default=75.0, help="of training, in total")
    parser.add_argument("--groups", type=int, default=4_000, help="training scenes")
    parser.add_argument("--first-unet", type=Path, help="folder; default: the built-in model's")
    parser.add_argument("--processes", type=int, help="default: one per core, one with a GPU")
    parser.add_argument(
        "--no-compile", action="store_true", help="start at once; steps may take longer"
    )
    chosen = parser.parse_args()
    budget = Budget(seconds=chosen.minutes * 60.0)
    workers.run_on_workers(
        _train_with_log,
        chosen.out,
        budget,
        chosen.first_unet,
        chosen.groups,
        not chosen.no_compile,
        processes=chosen.processes,
    )


def _train_with_log(
    out: Path, budget: Budget, first_unet: Path | None, groups: int, compiled: bool
) -> None:
    log_into(out)
    train(out, budget, first_unet=first_unet, groups=groups, compiled=compiled)


if __name__ == "__main__":
    main()

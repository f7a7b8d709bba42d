"""Trains the built-in model from scratch: `python -m fpe_core.still_life.train --out DIR`.

    render      the training scenes, once
    autoencoder images to latents and back
    encode      the latents of all training scenes, once
    decoder     again, on those latents
    denoiser    UNet and text encoder together
    export      a diffusers folder, every ten minutes and at the end
    defaults    the parameters to edit with, chosen on the validation split

It may be killed at any time: the same command continues each stage from its last snapshot.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from fpe_core.still_life.train import workers
from fpe_core.still_life.train.architecture import (
    build_autoencoder,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)
from fpe_core.still_life.train.autoencoder import (
    reconstruction_psnr_db,
    train_autoencoder,
    train_decoder,
)
from fpe_core.still_life.train.choose_defaults import choose_defaults
from fpe_core.still_life.train.data import FIRST_TRAINING_SEED, encoded, rendered, training_scenes
from fpe_core.still_life.train.denoiser import NoisePredictor, tokenize_captions, train_denoiser
from fpe_core.still_life.train.export import export, take_weights
from fpe_core.still_life.train.progress import Budget, Run, log_into

_EXPORT_EVERY_S = 600.0
_HELD_OUT_SEEDS = range(64)
_CONTINUED_LR_SCALE = 0.6  # for the learning rates, if training starts from an earlier model


@dataclasses.dataclass(frozen=True)
class StageBudgets:
    """How long each training stage may take."""

    autoencoder: Budget
    decoder: Budget
    denoiser: Budget


def train(
    out: Path,
    budgets: StageBudgets,
    *,
    start_from: Path | None = None,
    scene_count: int = 32_000,
    seed: int = 0,
    compiled: bool = True,
) -> dict[str, Any]:
    """Runs or resumes every stage in `out`, exports to `out/checkpoint`, returns its figures.

    `start_from` is an earlier export whose weights the networks start with. `compiled` False saves
    the minutes that compiling the UNet takes, for a training of a few steps.
    """
    # Longer than 50 lines: the stages in order, each using the results of those before.
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(out / f"tokenizer_{workers.rank()}")
    autoencoder = build_autoencoder()
    denoiser = NoisePredictor(build_unet(), build_text_encoder(tokenizer))
    earlier = take_weights(start_from, autoencoder, denoiser, tokenizer) if start_from else None

    scenes = training_scenes(scene_count)
    if workers.rank() == 0:
        rendered(out, scenes)  # the others read what the first has made
    workers.wait_for_all()
    images = rendered(out, scenes)
    common: dict[str, Any] = {"folder": out, "device": device, "seed": seed}
    common["lr_scale"] = 1.0 if earlier is None else _CONTINUED_LR_SCALE
    first = train_autoencoder(autoencoder, images, scenes, budget=budgets.autoencoder, **common)
    latents = encoded(autoencoder, images, out, device)
    second = train_decoder(autoencoder, latents, images, budget=budgets.decoder, **common)
    psnr_db = reconstruction_psnr_db(autoencoder, _HELD_OUT_SEEDS)

    figures: dict[str, Any] = {
        "continues": earlier,
        "seed": seed,
        "first_training_seed": FIRST_TRAINING_SEED,
        "scenes": scene_count,
        "processes": workers.count(),
        "held_out_psnr_db": psnr_db,
        "autoencoder": {"steps": first.step, "seconds": first.seconds},
        "decoder": {"steps": second.step, "seconds": second.seconds},
    }
    tokens = tokenize_captions(tokenizer, scenes)
    exported_at = time.monotonic()
    for run, average in train_denoiser(
        denoiser, latents, tokens, budget=budgets.denoiser, compiled=compiled, **common
    ):
        figures["denoiser"] = _figures_of(run)
        if workers.rank() == 0 and time.monotonic() - exported_at > _EXPORT_EVERY_S:
            export(out / "checkpoint", autoencoder, average, tokenizer, figures)
            exported_at = time.monotonic()
    if workers.rank() == 0:
        export(out / "checkpoint", autoencoder, average, tokenizer, figures)
    return figures


def _figures_of(denoiser: Run) -> dict[str, Any]:
    return {
        "steps": denoiser.step,
        "seconds": denoiser.seconds,
        "loss": denoiser.curve[-1]["loss"] if denoiser.curve else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--start-from", type=Path, help="an earlier export to continue from")
    parser.add_argument("--minutes", type=float, default=90.0, help="of training, in total")
    parser.add_argument("--autoencoder-share", type=float, default=0.2, help="of the minutes")
    parser.add_argument("--decoder-share", type=float, default=0.1, help="of the minutes")
    parser.add_argument("--processes", type=int, help="default: one per core, one with a GPU")
    parser.add_argument(
        "--validation-scenes", type=int, default=16, help="for choosing the default parameters"
    )
    chosen = parser.parse_args()
    in_all_s = chosen.minutes * 60.0
    first_s, second_s = in_all_s * chosen.autoencoder_share, in_all_s * chosen.decoder_share
    budgets = StageBudgets(
        Budget(seconds=first_s),
        Budget(seconds=second_s),
        Budget(seconds=in_all_s - first_s - second_s),
    )
    workers.run_on_workers(
        _train_with_log, chosen.out, budgets, chosen.start_from, processes=chosen.processes
    )
    choose_defaults(chosen.out / "checkpoint", scenes=chosen.validation_scenes)


def _train_with_log(out: Path, budgets: StageBudgets, start_from: Path | None) -> None:
    log_into(out)
    train(out, budgets, start_from=start_from)

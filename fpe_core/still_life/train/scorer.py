"""Trains the built-in scorer from scratch: `python -m fpe_core.still_life.train.scorer --out DIR`.

    render      the training scenes, once, or those of an earlier run with `--pictures`
    train       a small CLIP: images against captions, with near misses in every batch
    export      a folder for `CLIPModel.from_pretrained`
    measure     the export, on held-out scenes, into its training.json

It may be killed at any time: the same command continues from the last snapshot.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPModel, CLIPTokenizer

from fpe_core.scores.clip import load_scorer
from fpe_core.still_life.degrade import degrade
from fpe_core.still_life.scene import Scene
from fpe_core.still_life.train import workers
from fpe_core.still_life.train.architecture import build_tokenizer
from fpe_core.still_life.train.data import FIRST_TRAINING_SEED, rendered, training_scenes
from fpe_core.still_life.train.export import replace_folder
from fpe_core.still_life.train.measure_scorer import FIRST_MEASURED_SEED, measure_scorer
from fpe_core.still_life.train.progress import Budget, Run, log_into, write_json
from fpe_core.still_life.train.scorer_model import (
    GROUP,
    Learner,
    ScenePool,
    build_scorer,
    contrastive_loss,
    half_copy,
    image_preprocessing,
    renderer_loss,
)

_PEAK_LR = 1e-3
GROUPS_PER_STEP = 6  # in each process
_SHARPEST_LOGIT_SCALE = float(np.log(100.0))  # as in CLIP
_RECORD_EVERY_STEPS = 50
_MEASURED_SEEDS = range(FIRST_MEASURED_SEED, FIRST_MEASURED_SEED + 200)


def train_scorer(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    images: NDArray[np.uint8],
    scenes: list[Scene],
    *,
    folder: Path,
    budget: Budget,
    device: torch.device,
    seed: int = 0,
    groups_per_step: int = GROUPS_PER_STEP,
    snapshot_every_s: float = 60.0,
) -> Run:
    """Trains in place on (N, 128, 128, 3) images and returns the finished run with its curve."""
    learner = Learner(model).to(device).train()
    half = half_copy(learner)
    pool = ScenePool(scenes)
    weights = list(learner.parameters())
    optimizer = torch.optim.AdamW(weights, lr=_PEAK_LR, betas=(0.9, 0.98), weight_decay=0.02)
    state = {"learner": learner}
    run = Run("scorer", folder, budget, optimizer, _PEAK_LR, state, snapshot_every_s)
    losses: list[tuple[float, float]] = []
    for step in run.steps():
        rng = np.random.default_rng((seed, step, workers.rank()))
        batch = pool.batch(groups_per_step, rng)
        pixels = degrade(images[batch.chosen], rng).to(device)
        token_ids = tokenizer(batch.captions, padding=True, return_tensors="pt").input_ids
        answers = half.fresh()(pixels.to(torch.bfloat16), token_ids.to(device))
        loss = contrastive_loss(answers.captions, torch.from_numpy(batch.is_true).to(device))
        known = renderer_loss(answers, [scenes[number] for number in batch.chosen])
        (loss + known).backward()
        half.hand_over_gradients()
        workers.average_gradients(weights)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=_SHARPEST_LOGIT_SCALE)
        losses.append((float(loss.detach()), float(known.detach())))
        if len(losses) == _RECORD_EVERY_STEPS:
            loss_mean, known_mean = np.mean(losses, axis=0).tolist()
            run.record(loss=loss_mean, renderer_loss=known_mean)
            losses.clear()
    model.eval()
    return run


def make_scorer(
    out: Path,
    budget: Budget,
    *,
    images_folder: Path | None = None,
    scene_count: int = 32_000,
    measured_seeds: Sequence[int] = _MEASURED_SEEDS,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains or resumes in `out`, exports to `out/scorer` and returns its figures.

    `images_folder` has the rendered training scenes, or gets them; default: `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(out / f"tokenizer_{workers.rank()}")
    model = build_scorer(tokenizer)
    scenes = training_scenes(scene_count)
    if workers.rank() == 0:
        rendered(images_folder or out, scenes)
    workers.wait_for_all()
    images = rendered(images_folder or out, scenes)
    run = train_scorer(
        model, tokenizer, images, scenes, folder=out, budget=budget, device=device, seed=seed
    )
    figures = {
        "seed": seed,
        "first_training_seed": FIRST_TRAINING_SEED,
        "scenes": scene_count,
        "processes": workers.count(),
        "pictures_per_step": GROUPS_PER_STEP * GROUP * workers.count(),
        "steps": run.step,
        "seconds": run.seconds,
        "loss_at_step": {int(point["step"]): point["loss"] for point in _tenths(run.curve)},
    }
    if workers.rank() == 0:
        figures["held_out"] = export_scorer(
            out / "scorer", model, tokenizer, figures, measured_seeds
        )
    return figures


def export_scorer(
    folder: Path,
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    figures: dict[str, Any],
    measured_seeds: Sequence[int],
) -> dict[str, Any]:
    """Replaces `folder` by the model in float16 safetensors; a README.md in it stays.

    Returns the export's figures on the scenes of `measured_seeds`; training.json has them too.
    """
    fresh = folder.with_name(f"{folder.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    copy.deepcopy(model).cpu().eval().to(torch.float16).save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    build_tokenizer(fresh)  # vocab.json and merges.txt for older readers
    write_json(fresh / "preprocessor_config.json", image_preprocessing())
    measured = measure_scorer(load_scorer(fresh), measured_seeds)
    held_out = {factor: dataclasses.asdict(reached) for factor, reached in measured.items()}
    write_json(fresh / "training.json", {**figures, "held_out": held_out})
    replace_folder(folder, fresh, keep=("README.md",))
    return held_out


def _tenths(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    """About ten points of a curve, including the first and the last."""
    return [curve[i] for i in np.unique(np.linspace(0, len(curve) - 1, 10).astype(int)) if curve]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--pictures", type=Path, help="folder of an earlier run's images")
    parser.add_argument("--minutes", type=float, default=15.0, help="of training")
    parser.add_argument("--processes", type=int, help="default: one per core, one with a GPU")
    chosen = parser.parse_args()
    budget = Budget(seconds=chosen.minutes * 60.0)
    workers.run_on_workers(
        _make_with_log, chosen.out, budget, chosen.pictures, processes=chosen.processes
    )


def _make_with_log(out: Path, budget: Budget, images_folder: Path | None) -> None:
    log_into(out)
    make_scorer(out, budget, images_folder=images_folder)


if __name__ == "__main__":
    main()

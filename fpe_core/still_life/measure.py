"""How good a checkpoint is, on scenes it has never seen: `python -m fpe_core.still_life.measure`.

The renderer knows the true answer of every edit, and of every other edit that might have been
asked for. An edited picture is read as the nearest one among the scenes with every value of the
edited factor and every shape; it is *obeyed* if that value is the one asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fpe_core.checkpoint import load_checkpoint
from fpe_core.editor import Editor
from fpe_core.parameters import EditParameters, LayersByRange
from fpe_core.still_life import (
    CHECKPOINT_DIR,
    FACTORS,
    Scene,
    caption,
    counterfactual,
    object_mask,
    render,
    sample_scene,
)
from fpe_core.still_life.train_autoencoder import reconstruction_psnr_db

log = logging.getLogger(__name__)

FIRST_MEASURED_SEED = 2_000


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of the edits of one factor.

    Attributes:
        obeyed: share of edits that read as what was asked for, 0..1.
        shape_kept: share that read as the shape asked for, the scene's own if none was, 0..1.
        outside_psnr_db: likeness to the truth outside the object, mean.
        inside_psnr_db: likeness to the truth inside the object, mean.
    """

    obeyed: float
    shape_kept: float
    outside_psnr_db: float
    inside_psnr_db: float


def edited_scene(scene: Scene, factor: str, seed: int) -> Scene:
    """The scene with another value of a factor, chosen by the seed."""
    values = [value for value in FACTORS[factor] if value != getattr(scene, factor)]
    return counterfactual(scene, **{factor: values[seed % len(values)]})


def measure(
    editor: Editor,
    factor: str,
    seeds: Sequence[int],
    parameters: EditParameters | None = None,
    *,
    source_prompts: bool = True,
) -> Figures:
    """Edits one factor of each seed's scene and compares the pictures with the truth.

    `parameters` None takes the checkpoint's own; without `source_prompts` inversion has no prompt.
    """
    scenes = [sample_scene(seed) for seed in seeds]
    wanted = [edited_scene(scene, factor, seed) for scene, seed in zip(scenes, seeds, strict=True)]
    prompts = [caption(scene) for scene in scenes] if source_prompts else None
    inversion = editor.invert([render(scene) for scene in scenes], prompts, parameters)
    result = editor.edit(inversion, [[caption(scene)] for scene in wanted], parameters)
    pictures = [_pixels(edits[0].image) for edits in result.edits]
    pairs = list(zip(pictures, wanted, strict=True))
    read = [_nearest(picture, scene, factor) for picture, scene in pairs]
    return Figures(
        obeyed=_share_of_equals(read, wanted, factor),
        shape_kept=_share_of_equals(read, wanted, "shape"),
        outside_psnr_db=_mean_psnr_db(pairs, inside=False),
        inside_psnr_db=_mean_psnr_db(pairs, inside=True),
    )


def _nearest(picture: NDArray[np.float64], scene: Scene, factor: str) -> Scene:
    """Of the scenes with any value of the factor and any shape, the one that looks most like it."""
    valued = [counterfactual(scene, **{factor: value}) for value in FACTORS[factor]]
    candidates = [
        counterfactual(each, shape=shape) for each in valued for shape in FACTORS["shape"]
    ]
    return min(candidates, key=lambda each: float(np.mean((_pixels(render(each)) - picture) ** 2)))


def _share_of_equals(read: Sequence[Scene], wanted: Sequence[Scene], factor: str) -> float:
    equal = [getattr(a, factor) == getattr(b, factor) for a, b in zip(read, wanted, strict=True)]
    return equal.count(True) / len(equal)


def _mean_psnr_db(pairs: Sequence[tuple[NDArray[np.float64], Scene]], *, inside: bool) -> float:
    values = []
    for picture, scene in pairs:
        region = object_mask(scene) == inside
        error = np.mean((picture - _pixels(render(scene)))[region] ** 2)
        values.append(-10.0 * math.log10(max(error, 1e-10)))
    return float(np.mean(values))


def _pixels(image: object) -> NDArray[np.float64]:
    """(H, W, 3), 0..1."""
    return np.asarray(image, dtype=np.float64) / 255.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, default=CHECKPOINT_DIR)
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--first-seed", type=int, default=FIRST_MEASURED_SEED)
    parser.add_argument("--factors", nargs="*", default=["colour", "background", "material"])
    parser.add_argument("--layers", nargs=2, type=int, metavar=("FIRST", "LAST"))
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--fraction", type=float, help="of the steps that replace maps")
    parser.add_argument("--no-source-prompt", action="store_true")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    checkpoint = load_checkpoint(chosen.checkpoint, device="cpu")
    parameters = checkpoint.default_parameters
    if chosen.layers:
        parameters = dataclasses.replace(parameters, layers=LayersByRange(*chosen.layers))
    if chosen.guidance:
        parameters = dataclasses.replace(parameters, guidance_scale=chosen.guidance)
    if chosen.fraction is not None:
        parameters = dataclasses.replace(parameters, replaced_fraction=chosen.fraction)
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.scenes)
    log.info("%d scenes, %s", len(seeds), parameters.to_dict())
    log.info("reconstruction %.2f dB", reconstruction_psnr_db(checkpoint.vae, seeds))
    for factor in chosen.factors:
        figures = measure(
            Editor(checkpoint, max_rows=32),
            factor,
            seeds,
            parameters,
            source_prompts=not chosen.no_source_prompt,
        )
        log.info("%s %s", factor, dataclasses.asdict(figures))


if __name__ == "__main__":
    main()

"""How well scores find bad edits: `python -m fpe_core.still_life.benchmark.measure_scores`.

Edits of the benchmark's validation scenes, one of each factor per scene. A *correct* edit is the
exact answer, encoded and decoded by the built-in autoencoder, as the output of a model would be.
It is compared with these, decoded in the same way:

    unchanged      the source
    other_scene    the exact answer of the next scene's edit of the same factor
    other_pose     the right factors, at another scene's place, size and angle
    wrong_value    the source with another, wrong value of the right factor

The figure is the area under the ROC curve: the probability that a correct edit has a higher score
than one of the others (for structure distance: a lower one), ties counting half. A directional
similarity of None counts as 0.

Measured 2026-11-25, 40 scenes, 200 edits, built-in models, float32, one core of an Intel Xeon:

    edits of    score                    unchanged  other_scene  other_pose  wrong_value
    any         structure distance           0.001        0.972       0.941        0.486
                directional similarity       1.000        1.000       0.684        0.999
                text score                   1.000        1.000       0.481        1.000
    shape       structure distance           0.001        0.826       0.814        0.501
                directional similarity       0.999        0.999       0.541        0.999
    the others, structure distance           0.000        0.999       0.997        0.409
    the least   directional similarity       1.000        1.000       0.706        1.000

So the two complement each other, and neither is enough. Structure distance detects a lost layout,
but less well for edits of shape, which change the layout themselves. It does not depend on the
requested value, and is lower for an edit that changed nothing than for a correct one. CLIP detects
a wrong value and no change, but hardly a lost layout. These edits are rendered: a model's mistakes
are less clear-cut, and a wrong value drawn at random is seldom a near miss.

Structure distance itself, median and 5 to 95 %: correct 0.020 (0.005 to 0.158), unchanged 0.0005
(to 0.002), other_pose 0.185 (0.063 to 0.406).

The share of changed pixels at a distance of 0.12: for unchanged edits, which only the autoencoder
changes, 0.003 in the median and at most 0.018; for correct edits at least 0.043. At 0.06 the two
bounds would be 0.067 and 0.077, at 0.2 they would be 0.003 and 0.020.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from fpe_core.checkpoint.autoencoder import Autoencoder
from fpe_core.checkpoint.load import Checkpoint, load_checkpoint
from fpe_core.scores.clip import load_scorer
from fpe_core.scores.edit_scores import EditScores
from fpe_core.scores.pixels import changed_share
from fpe_core.scores.score import score_edits
from fpe_core.scores.structure import load_structure_model
from fpe_core.still_life.benchmark.edits import BenchmarkEdit, edits_of_scene, seeds_of
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS, Scene, counterfactual
from fpe_core.unet.row_limit import RowLimit

log = logging.getLogger(__name__)

_POSE = ("centre_x", "centre_y", "radius", "angle_deg", "light", "horizon")
_DISTANCES = (0.06, 0.08, 0.1, 0.12, 0.15, 0.2)


def candidates(edits: Sequence[BenchmarkEdit]) -> dict[str, list[Scene]]:
    """What stands in for the output of each edit: "correct", and the kinds of the module."""
    others = [*edits[len(FACTORS) :], *edits[: len(FACTORS)]]  # of the next scene, the same factor
    return {
        "correct": [edit.answer for edit in edits],
        "unchanged": [edit.source for edit in edits],
        "other_scene": [other.answer for other in others],
        "other_pose": [
            dataclasses.replace(
                edit.answer, **{name: getattr(other.source, name) for name in _POSE}
            )
            for edit, other in zip(edits, others, strict=True)
        ],
        "wrong_value": [_wrong_value(edit) for edit in edits],
    }


def area_under_curve(higher: Sequence[float], lower: Sequence[float]) -> float:
    """The probability that one of `higher` exceeds one of `lower`, ties counting half, 0..1.

    NaN if a value is NaN, or either is empty.
    """
    from scipy.stats import mannwhitneyu  # here, because it takes a second to load

    found = mannwhitneyu(higher, lower, method="asymptotic")  # its p-value is not used
    return float(found.statistic) / (len(higher) * len(lower))


def separation(
    scores: Mapping[str, Sequence[EditScores]], factors: Sequence[str], factor: str | None
) -> dict[str, dict[str, float]]:
    """Score to kind to area under the curve, of one factor's edits or of all."""

    def of(kind: str, score: str) -> list[float]:
        values = [
            getattr(each, score) or 0.0
            for each, name in zip(scores[kind], factors, strict=True)
            if factor in (None, name)
        ]
        return [-value for value in values] if score == "structure_distance" else values

    return {
        score: {
            kind: area_under_curve(of("correct", score), of(kind, score))
            for kind in scores
            if kind != "correct"
        }
        for score in ("structure_distance", "directional_similarity", "text_score")
    }


def decoded(checkpoint: Checkpoint, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Each image encoded and decoded again."""
    limit, autoencoder = RowLimit(16), Autoencoder(checkpoint)
    images, _ = autoencoder.decode(autoencoder.encode(images, limit), limit)
    return list(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=40)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    edits = [
        edit for seed in seeds_of("validation", chosen.scenes) for edit in edits_of_scene(seed)
    ]
    factors = [edit.factor for edit in edits]
    checkpoint = load_checkpoint("builtin:still-life", device="cpu", dtype=torch.float32)
    clip, structure = load_scorer(device="cpu"), load_structure_model(device="cpu")
    sources = [render(edit.source) for edit in edits]
    outputs = {
        kind: decoded(checkpoint, [render(scene) for scene in scenes])
        for kind, scenes in candidates(edits).items()
    }
    before, after = [each.source_prompt for each in edits], [each.target_prompt for each in edits]
    scores = {
        kind: score_edits(sources, made, before, after, clip=clip, structure=structure)
        for kind, made in outputs.items()
    }
    for factor in (None, *FACTORS):
        for score, areas in separation(scores, factors, factor).items():
            log.info("%s %s %s", factor or "all", score, _rounded(areas))
    for kind, of_kind in scores.items():
        log.info("%s %s", kind, _quantiles([each.structure_distance or 0.0 for each in of_kind]))
    for distance in _DISTANCES:
        shares = {
            kind: _quantiles(changed_share(sources, outputs[kind], distance=distance))
            for kind in ("unchanged", "correct")
        }
        log.info("changed share at %s: %s", distance, shares)


def _wrong_value(edit: BenchmarkEdit) -> Scene:
    values = [v for v in FACTORS[edit.factor] if v not in (edit.source_value, edit.target_value)]
    rng = np.random.default_rng((edit.seed, 2))
    return counterfactual(edit.source, **{edit.factor: values[int(rng.integers(len(values)))]})


def _rounded(areas: Mapping[str, float]) -> dict[str, float]:
    return {kind: round(area, 3) for kind, area in areas.items()}


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    shares = {"least": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "most": 1.0}
    return {name: round(float(np.quantile(values, q)), 5) for name, q in shares.items()}


if __name__ == "__main__":
    main()

"""The scores that an edit can have. Importing this loads no torch, for rules and ledgers.

`fpe_core.scores.score` computes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set as AbstractSet


@dataclasses.dataclass(frozen=True)
class EditScores:
    """The scores of one edit against its source and its prompts.

    A score is None if it was not computed. Two are also None if an edit has no such score.

    Attributes:
        text_score: CLIP: the edit fits the target prompt; -1..1, higher = better.
        directional_similarity: CLIP (CDS): the image changed as the prompt did; -1..1, higher =
            better. Also None if image or prompt did not change, or without a source prompt.
        image_similarity: CLIP: edit and source are alike; -1..1, higher = more alike.
        structure_distance: the layouts differ (ViT keys); 0..4, lower = structure kept.
        lpips: edit and source look different; from 0, lower = more alike.
        ssim: -1..1, higher = more alike.
        psnr_db: dB, higher = more alike; infinite for equal images.
        changed_share: share of pixels changed, 0..1.
        sharpness_ratio: edit over source, from 0; below 1 = softer. Also None for a flat source.
        saturation_shift: mean chroma, edit minus source; -1..1.
        clipped_shift: share of clipped values, edit minus source; -1..1.
    """

    text_score: float | None = None
    directional_similarity: float | None = None
    image_similarity: float | None = None
    structure_distance: float | None = None
    lpips: float | None = None
    ssim: float | None = None
    psnr_db: float | None = None
    changed_share: float | None = None
    sharpness_ratio: float | None = None
    saturation_shift: float | None = None
    clipped_shift: float | None = None


CLIP_SCORES = frozenset({"text_score", "directional_similarity", "image_similarity"})
SCORES = frozenset(field.name for field in dataclasses.fields(EditScores))
"""The names of all scores."""
SCORES_OF_MODEL: dict[str, AbstractSet[str]] = {
    "clip": CLIP_SCORES,
    "structure": frozenset({"structure_distance"}),
    "lpips": frozenset({"lpips"}),
}
"""The scores that need a model, by model."""
LEAST_PX = {"lpips": 32, "ssim": 11, "sharpness_ratio": 3}
"""The least side of an edit in pixels, for scores that have one."""

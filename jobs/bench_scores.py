"""What a CLIP says of judged edits, beside what the renderer knows of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fpe_core.scores import ClipScorer, directional_similarity, text_score
from fpe_core.still_life.benchmark import JudgedEdit
from fpe_core.still_life.render import render


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """Of one output: cosine to its target prompt, and directional similarity, each -1..1.

    `directional` is None where the output does not differ from its source.
    """

    text: float
    directional: float | None


def clip_scores(scorer: ClipScorer, judged: Sequence[JudgedEdit]) -> list[ClipScores]:
    """The scores of each judged edit, in order; a source is embedded once for all its edits."""
    size_px = judged[0].output.width
    sources = {each.edit.seed: each.edit for each in judged}
    rendered = scorer.embed_images(render(edit.source, size_px) for edit in sources.values())
    prompts = scorer.embed_texts(edit.source_prompt for edit in sources.values())
    place = {seed: number for number, seed in enumerate(sources)}
    of_source = [place[each.edit.seed] for each in judged]
    outputs = scorer.embed_images(each.output for each in judged)
    targets = scorer.embed_texts(each.edit.target_prompt for each in judged)
    texts = text_score(outputs, targets)
    directions = directional_similarity(rendered[of_source], outputs, prompts[of_source], targets)
    return [ClipScores(*pair) for pair in zip(texts, directions, strict=True)]


def mean_directional(
    judged: Sequence[JudgedEdit], scores: Sequence[ClipScores], success: bool
) -> float | None:
    """Mean directional similarity of the edits that are right, or of those that are not."""
    values = [
        score.directional
        for each, score in zip(judged, scores, strict=True)
        if each.judgement.success == success and score.directional is not None
    ]
    return float(np.mean(values)) if values else None

"""How well a scorer judges held-out scenes: `python -m fpe_core.still_life.train.measure_scorer`.

The renderer knows which caption is true and what the right result of an edit looks like, so it is
known what a scorer should prefer.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import torch

from fpe_core.checkpoint.files import BUILTIN_STILL_LIFE
from fpe_core.scores.clip import ClipScorer, directional_similarity, load_scorer
from fpe_core.still_life.degrade import compressed
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS, Scene, caption, counterfactual, sample_scene

log = logging.getLogger(__name__)

FIRST_MEASURED_SEED = 3_000
_UNEDITED_JPEG_QUALITY = 75


@dataclasses.dataclass(frozen=True)
class FactorJudgement:
    """How well a scorer judges one factor.

    Attributes:
        read_right: share of scenes whose caption scores higher than the same caption with any other
            value of the factor, 0..1.
        edits_ranked_first: share of edits whose true image has a higher directional similarity than
            the image with another, wrong value and than the unedited one, 0..1.
        of_true_edits, of_wrong_edits, of_no_edit: mean directional similarity, -1..1; None counts
            as 0. The unedited image is the source, saved as JPEG.
    """

    read_right: float
    edits_ranked_first: float
    of_true_edits: float
    of_wrong_edits: float
    of_no_edit: float


def measure_scorer(scorer: ClipScorer, seeds: Sequence[int]) -> dict[str, FactorJudgement]:
    """Factor to how well the scorer judges it on the seeds' scenes."""
    scenes = [sample_scene(seed) for seed in seeds]
    before = scorer.embed_images(render(scene) for scene in scenes)
    unedited = scorer.embed_images(
        compressed(render(scene), _UNEDITED_JPEG_QUALITY) for scene in scenes
    )
    return {factor: _judge(scorer, factor, scenes, before, unedited) for factor in FACTORS}


def _judge(
    scorer: ClipScorer,
    factor: str,
    scenes: Sequence[Scene],
    before: torch.Tensor,
    unedited: torch.Tensor,
) -> FactorJudgement:
    rng = np.random.default_rng(len(scenes))
    wanted, wrong = [], []
    for scene in scenes:
        others = [value for value in FACTORS[factor] if value != getattr(scene, factor)]
        first, second = rng.choice(others, size=2, replace=False).tolist()
        wanted.append(counterfactual(scene, **{factor: first}))
        wrong.append(counterfactual(scene, **{factor: second}))
    asked = [scorer.embed_texts(caption(scene) for scene in each) for each in (scenes, wanted)]
    seen = {
        "true": scorer.embed_images(render(scene) for scene in wanted),
        "wrong": scorer.embed_images(render(scene) for scene in wrong),
        "none": unedited,
    }
    likeness = {
        edit: np.array(directional_similarity(before, after, *asked), np.float64)
        for edit, after in seen.items()
    }
    true, wrong_or_none = (
        np.nan_to_num(each, nan=-np.inf)
        for each in (likeness["true"], np.fmax(likeness["wrong"], likeness["none"]))
    )
    means = {edit: float(np.mean(np.nan_to_num(each))) for edit, each in likeness.items()}
    return FactorJudgement(
        read_right=_share_read_right(scorer, factor, scenes, before),
        edits_ranked_first=float(np.mean(true > wrong_or_none)),
        of_true_edits=means["true"],
        of_wrong_edits=means["wrong"],
        of_no_edit=means["none"],
    )


def _share_read_right(
    scorer: ClipScorer, factor: str, scenes: Sequence[Scene], images: torch.Tensor
) -> float:
    values = FACTORS[factor]
    texts = scorer.embed_texts(
        caption(counterfactual(scene, **{factor: value})) for scene in scenes for value in values
    )
    scores = torch.einsum("nd,nvd->nv", images, texts.view(len(scenes), len(values), -1))
    true = torch.tensor([values.index(getattr(scene, factor)) for scene in scenes])
    return float((scores.argmax(1) == true).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scorer", nargs="?", default=BUILTIN_STILL_LIFE)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=FIRST_MEASURED_SEED)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scorer = load_scorer(chosen.scorer, device="cpu")
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.scenes)
    for factor, judgement in measure_scorer(scorer, seeds).items():
        figures = {name: round(value, 3) for name, value in dataclasses.asdict(judgement).items()}
        log.info("%s %s", factor, figures)


if __name__ == "__main__":
    main()

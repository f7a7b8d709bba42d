"""Means of judged edits, by method and by type of edit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpe_core.still_life.scene import FACTORS

Rows = Sequence[Mapping[str, Any]]
"""Rows of `jobs.bench.editors.parts.ROW_SCHEMA`."""


@dataclass(frozen=True)
class MethodFigures:
    """Means over the edits that a method can make; each type of edit counts the same.

    Attributes:
        made, asked: number of edits that were made, and of all.
        success, structure, score: 0..1, see `fpe_core.still_life.benchmark.judgement`.
        psnr_db, kept_psnr_db: to the exact answer, of the whole image and of what should stay;
            `kept_psnr_db` is None if no edit has one.
        unet_rows, seconds: per edit that was made, with its share of the inversion.
    """

    made: int
    asked: int
    success: float
    structure: float
    score: float
    psnr_db: float
    kept_psnr_db: float | None
    unet_rows: float
    seconds: float


def made_of(rows: Rows) -> list[Mapping[str, Any]]:
    """The rows of edits that were made."""
    return [row for row in rows if not row["not_applicable"]]


def figures_of(rows: Rows) -> MethodFigures | None:
    """The figures of one method's rows; None if it can make none of the edits."""
    made = made_of(rows)
    if not made:
        return None
    return MethodFigures(
        made=len(made),
        asked=len(rows),
        **{
            name: _mean_of_types(made, name)
            for name in ("success", "structure", "score", "psnr_db", "unet_rows", "seconds")
        },
        kept_psnr_db=(
            _mean_of_types(made, "kept_psnr_db")
            if any(row["kept_psnr_db"] is not None for row in made)
            else None
        ),
    )


def best_of_type(rows: Rows, factor: str) -> tuple[str | None, frozenset[str]]:
    """The method with the highest mean score of one type of edit, and those that are as good.

    As good is a method whose score is not below the best one's by more than twice the standard
    error of the mean difference over the edits that both made: the difference may be chance.

    Args:
        rows: of all methods in one column.
        factor: the type of edit.

    Returns:
        (name of the best, names of the others that are as good); (None, empty) if none made any.
    """
    scores: dict[str, dict[int, float]] = {}
    for row in made_of(rows):
        if row["factor"] == factor:
            scores.setdefault(row["method"], {})[row["seed"]] = row["score"]
    if not scores:
        return None, frozenset()
    best = max(scores, key=lambda name: float(np.mean(list(scores[name].values()))))
    others = (name for name in scores if name != best)
    return best, frozenset(name for name in others if _is_as_good(scores[name], scores[best]))


def _is_as_good(own: Mapping[int, float], best: Mapping[int, float]) -> bool:
    """Whether scores by seed are within twice the standard error of the mean difference."""
    behind = [best[seed] - own[seed] for seed in own if seed in best]
    if len(behind) < 2:
        return bool(behind) and behind[0] <= 0
    error = float(np.std(behind, ddof=1)) / math.sqrt(len(behind))
    return float(np.mean(behind)) <= 2 * error


def score_of(rows: Rows) -> float:
    """Mean of success x structure over the types of edit that were made, 0..1; 0 if none was."""
    figures = figures_of(rows)
    return figures.score if figures else 0.0


def _mean_of_types(made: Rows, name: str) -> float:
    """Mean over the types of edit of their means; values that are None are left out."""
    values = [
        [row[name] for row in made if row["factor"] == factor and row[name] is not None]
        for factor in FACTORS
    ]
    return float(np.mean([np.mean(each) for each in values if each]))

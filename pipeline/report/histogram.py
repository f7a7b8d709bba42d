"""The scores of a run's edits in bins, by type of edit and outcome, with the rules' thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fpe_core.judging.rules import Rule

MOST_BINS = 40
# This share of the values may lie outside the range on each side, so that one outlier does not
# squeeze all others into a few bins.
_TAIL = 0.005


@dataclass(frozen=True)
class Histogram:
    """The distribution of one score over the edits of one type.

    Attributes:
        low, high: the range of the bins, which are equally wide; low < high. Values outside it,
            including infinite ones, are counted in the first and the last bin.
        accepted, rejected: number of edits by bin.
        rules: the rules of this type on this score; their bounds lie in the range.
        median: of all values.
        broken: number of edits that break one of these rules, whatever their reject reason.
    """

    score: str
    edit_type: str
    low: float
    high: float
    accepted: tuple[int, ...]
    rejected: tuple[int, ...]
    rules: tuple[Rule, ...]
    median: float
    broken: int

    @property
    def edits(self) -> int:
        return sum(self.accepted) + sum(self.rejected)

    @property
    def tallest(self) -> int:
        """The number of edits in the fullest bin."""
        return max(a + r for a, r in zip(self.accepted, self.rejected, strict=True))


def bound_of(rule: Rule) -> float:
    """The threshold of a rule: its `at_least` or `at_most`."""
    return rule.at_least if rule.at_least is not None else float(rule.at_most or 0.0)


def histogram_of(
    score: str,
    edit_type: str,
    values: NDArray[np.float64],
    is_accepted: NDArray[np.bool_],
    rules: Sequence[Rule],
) -> Histogram | None:
    """Bins for N values; NaN means no value. Returns None if there is no value at all."""
    is_value = ~np.isnan(values)
    values, is_accepted = values[is_value], is_accepted[is_value]
    if not len(values):
        return None
    on_score = tuple(rule for rule in rules if rule.score == score)
    low, high = _range(values, [bound_of(rule) for rule in on_score])
    edges = np.linspace(low, high, _bins(len(values)) + 1)
    inside = np.clip(values, low, high)
    counts = [
        tuple(int(n) for n in np.histogram(inside[chosen], edges)[0])
        for chosen in (is_accepted, ~is_accepted)
    ]
    broken = sum(any(rule.broken_by(float(value)) for rule in on_score) for value in values)
    return Histogram(
        score=score,
        edit_type=edit_type,
        low=low,
        high=high,
        accepted=counts[0],
        rejected=counts[1],
        rules=on_score,
        median=float(np.median(values)),
        broken=broken,
    )


def _bins(edits: int) -> int:
    return max(8, min(MOST_BINS, 2 * math.isqrt(edits)))


def _range(values: NDArray[np.float64], bounds: Sequence[float]) -> tuple[float, float]:
    """A range that contains nearly all finite values, and every threshold."""
    finite = values[np.isfinite(values)]
    ends = [*bounds, *(np.quantile(finite, (_TAIL, 1 - _TAIL)) if len(finite) else ())]
    low, high = float(min(ends, default=0.0)), float(max(ends, default=0.0))
    margin = (high - low) * 0.02 or max(abs(low) * 0.02, 1e-3)
    return low - margin, high + margin

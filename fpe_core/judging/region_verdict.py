"""Whether a box or mask is kept for an edit, dropped, or left for a person to review."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RegionVerdict(StrEnum):
    """What happens to a box or mask: it is kept, reviewed by a person, or dropped."""

    KEEP = "keep"
    REVIEW = "review"
    DROP = "drop"


@dataclass(frozen=True)
class VerdictRule:
    """Thresholds of a verdict, each 0..1.

    Attributes:
        keep_at_least, review_at_least: of the structure score of `fpe_core.scores.regions`.
        visible_at_least: of the region's share that is visible in the fitted image.
    """

    keep_at_least: float
    review_at_least: float
    visible_at_least: float = 0.3

    def verdict(self, visible: float, structure: float | None) -> RegionVerdict:
        """DROP if nothing is visible; REVIEW if the source's region has no structure (None)."""
        if visible <= 0:
            return RegionVerdict.DROP
        if structure is None:
            return RegionVerdict.REVIEW
        if structure < self.review_at_least:
            return RegionVerdict.DROP
        is_sure = structure >= self.keep_at_least and visible >= self.visible_at_least
        return RegionVerdict.KEEP if is_sure else RegionVerdict.REVIEW


BOX_RULE = VerdictRule(keep_at_least=0.81, review_at_least=0.55)
MASK_RULE = VerdictRule(keep_at_least=0.86, review_at_least=0.75)
"""Chosen by `fpe bench boxes` on validation scenes; docs/benchmark.md has the results."""

"""What becomes of a box or mask in an edit: keep it, have a person look at it, or drop it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RegionVerdict(StrEnum):
    KEEP = "keep"
    REVIEW = "review"
    DROP = "drop"


@dataclass(frozen=True)
class VerdictRule:
    """Thresholds of a verdict, each 0..1.

    Attributes:
        keep_at_least, review_at_least: of the structure that `fpe_core.scores.regions` finds.
        visible_at_least: of the share of the region that is left in the fitted picture.
    """

    keep_at_least: float
    review_at_least: float
    visible_at_least: float = 0.3

    def verdict(self, visible: float, structure: float | None) -> RegionVerdict:
        """Nothing left: drop. Nothing to see inside the source's region (None): review."""
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
"""As `fpe bench boxes` chose them, on validation scenes; docs/benchmark.md has what they do."""

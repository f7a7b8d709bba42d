"""Whether what is timed in a cell is right, in the type it is timed in.

The gate compares in float32, at a size and with sources of its own. Here every arm's latents from
its first run in a cell are compared, all of them: an arm that is wrong there has no speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.speed.gate import farthest

HALF_MARGIN = 3.0
"""In half precision an arm may be this many times as far away as D, and D as B, from A.

Rounding alone decides how far that is: guidance enlarges it from step to step, and random weights
more than trained ones.
"""


@dataclass(frozen=True)
class Agreement:
    """One arm's latents.

    Attributes:
        from_authors, from_ours: see `Measured`.
        wrong: what is wrong with them, in a line; "" for nothing.
    """

    from_authors: float | None
    from_ours: float | None
    wrong: str


def agreements(
    latents: Mapping[str, Tensor], *, is_exact: bool, tolerance: float
) -> dict[str, Agreement]:
    """Judges the arms of a cell.

    Args:
        latents: (edits, C, h, w) by arm, source by source; an arm may have made fewer edits, the
            first of each of the first sources. An arm that failed is not there.
        is_exact: whether they were made in float32, so that the gate's tolerance holds.
        tolerance: of the gate.
    """
    ours = next((name for name in ("C", "D") if name in latents), "")
    from_authors = {name: _distance(own, latents.get("A")) for name, own in latents.items()}
    return {
        name: _agreement(
            own,
            from_authors[name],
            None if name == "A" else _distance(own, latents.get(ours)),
            tolerance if is_exact else _half_bound(name, from_authors),
            ours,
        )
        for name, own in latents.items()
    }


def _agreement(
    latents: Tensor, from_authors: float | None, from_ours: float | None, bound: float, ours: str
) -> Agreement:
    wrong = ""
    if not bool(torch.isfinite(latents).all()):
        wrong = "wrong: its latents are not all finite"
    for distance, whose in ((from_authors, "A"), (from_ours, ours)):
        if not wrong and distance is not None and not distance <= bound:
            wrong = f"wrong: an edit is {distance:.1e} from {whose}'s, more than {bound:.1e}"
    return Agreement(from_authors, from_ours, wrong)


def _half_bound(name: str, from_authors: Mapping[str, float | None]) -> float:
    """Infinite where what it is measured by failed."""
    unit = from_authors.get("B" if name == "D" else "D")
    return float("inf") if unit is None else HALF_MARGIN * unit


def _distance(latents: Tensor, expected: Tensor | None) -> float | None:
    """Of the edits that both made."""
    if expected is None:
        return None
    both = min(len(latents), len(expected))
    return farthest(latents[:both], expected[:both])

"""Thresholds from judgements: the rules that keep most good edits at a wanted precision.

    rules = fit_rules([JudgedEdit(scores, is_good=True), ...], precision=0.97)
    quality_of(rules, other_edits).recall

Every combination of bounds on the four scores that stand for the four reasons of rejection is
tried, at quantiles of the good edits: the share of good edits that a rule alone would cost is known
beforehand, and no bound is finer than the judgements allow. Thresholds suit best what they were
chosen by, so aim a little above what you need, and measure on other edits.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fpe_core.acceptance import RejectReason, Rule
from fpe_core.edit_scores import EditScores
from fpe_core.errors import ParameterError

_LOST_SHARES = tuple(number / 40 for number in range(13))
"""Shares of the good edits that one rule may cost: 0 to 0.3."""

_LEAST = (
    ("changed_share", RejectReason.NO_CHANGE),
    ("directional_similarity", RejectReason.WRONG_DIRECTION),
    ("text_score", RejectReason.OFF_TARGET),
)
_MOST = (("structure_distance", RejectReason.STRUCTURE_LOST),)

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class JudgedEdit:
    """The scores of an edit, and whether somebody who looked at it would keep it.

    Edits of one `source` are alike, so a check that leaves edits out leaves them out together.
    None: the source is not known.
    """

    scores: EditScores
    is_good: bool
    source: Hashable = None


@dataclass(frozen=True)
class Quality:
    """What rules make of judged edits.

    Attributes:
        precision: share of the accepted edits that are good; None where none is accepted.
        recall: share of the good edits that are accepted; None where none is good.
    """

    edits: int
    good: int
    accepted: int
    accepted_good: int

    @property
    def precision(self) -> float | None:
        return self.accepted_good / self.accepted if self.accepted else None

    @property
    def recall(self) -> float | None:
        return self.accepted_good / self.good if self.good else None


def quality_of(rules: Sequence[Rule], edits: Sequence[JudgedEdit]) -> Quality:
    """How rules do on edits that were judged."""
    accepted = [
        edit
        for edit in edits
        if not any(rule.broken_by(getattr(edit.scores, rule.score)) for rule in rules)
    ]
    return Quality(
        edits=len(edits),
        good=sum(edit.is_good for edit in edits),
        accepted=len(accepted),
        accepted_good=sum(edit.is_good for edit in accepted),
    )


def fit_rules(edits: Sequence[JudgedEdit], precision: float = 0.97) -> tuple[Rule, ...]:
    """Of all rules with at least this precision on these edits, those with the highest recall.

    Where none reaches it, those of the highest precision. Of equal ones the fewest rules. Scores
    that no edit has are left alone.

    Raises:
        ParameterError: no edit is good, or a precision outside 0..1.
    """
    return Search(edits).rules(precision)


class Search:
    """Every combination of bounds, with what it makes of some judged edits: tried once, for any
    precision. `fit_rules` says what is chosen.

    Raises ParameterError where no edit is good.
    """

    def __init__(self, edits: Sequence[JudgedEdit]) -> None:
        good = np.array([edit.is_good for edit in edits], dtype=bool)
        if not good.any():
            raise ParameterError("no edit is judged good, so there is nothing to keep")
        self._first = _pairs(edits, good, _LEAST[:1], _MOST)
        self._second = _pairs(edits, good, _LEAST[1:2], _LEAST[2:])
        first, second = _passes(self._first), _passes(self._second)  # (choices, edits)
        self._hits = (first * good) @ second.T  # (choices, choices), as all below
        self._accepted = first @ second.T
        self._rules = _counts(self._first)[:, None] + _counts(self._second)[None]

    def rules(self, precision: float) -> tuple[Rule, ...]:
        """Raises ParameterError for a precision outside 0..1."""
        if not 0 <= precision <= 1:
            raise ParameterError(f"precision must be 0 to 1, got {precision!r}")
        found = self._hits / np.maximum(self._accepted, 1)
        is_best = self._hits > 0  # never nowhere: no rule at all accepts every good edit
        for rank in (np.minimum(found, precision), self._hits, -self._rules):
            is_best &= rank == rank[is_best].max()
        first, second = np.argwhere(is_best)[0]
        return (*self._first[first][0], *self._second[second][0])


def _pairs(
    edits: Sequence[JudgedEdit],
    good: Mask,
    *scores: Sequence[tuple[str, RejectReason]],
) -> list[tuple[tuple[Rule, ...], Mask]]:
    """Every choice of a bound, or none, for each score; with the edits that break none."""
    choices: list[tuple[tuple[Rule, ...], Mask]] = [((), np.ones(len(edits), dtype=bool))]
    for name, reason in (item for of in scores for item in of):
        bounds = _bounds(name, reason, edits, good)
        choices += [
            ((*rules, rule), mask & passes) for rules, mask in choices for rule, passes in bounds
        ]
    return choices


def _passes(choices: Sequence[tuple[tuple[Rule, ...], Mask]]) -> NDArray[np.float64]:
    return np.stack([mask for _, mask in choices]).astype(np.float64)


def _counts(choices: Sequence[tuple[tuple[Rule, ...], Mask]]) -> NDArray[np.int64]:
    return np.array([len(rules) for rules, _ in choices])


def _bounds(
    name: str, reason: RejectReason, edits: Sequence[JudgedEdit], good: Mask
) -> list[tuple[Rule, Mask]]:
    values = [getattr(edit.scores, name) for edit in edits]
    of_good = [v for v, is_good in zip(values, good, strict=True) if is_good and v is not None]
    if not of_good:
        return []
    is_most = (name, reason) in _MOST
    found = {}
    for share in _LOST_SHARES:
        bound = float(np.quantile(of_good, 1 - share if is_most else share))
        rule = Rule(name, reason, at_most=bound) if is_most else Rule(name, reason, at_least=bound)
        found[rule] = np.array([not rule.broken_by(value) for value in values], dtype=bool)
    return list(found.items())

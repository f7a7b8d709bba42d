"""Fits rules to judged edits: the rules that keep most good edits at a wanted precision.

    rules = fit_rules([JudgedEdit(scores, is_good=True), ...], precision=0.97)
    quality_of(rules, other_edits).recall

    fitted = fit_to_hold(edits, precision=0.95, recall=0.8)
    fitted.rules, fitted.aim, fitted.held_out.precision

Each reject reason has scores that can detect it (`FITTED`). Every combination of bounds, with at
most one score for each reason, is tried. The bounds are quantiles of the good edits, so the share
of good edits that a rule alone would cost is known beforehand, and no bound is finer than the
judgements allow.

An edit that changed nothing breaks other rules too, and a retry is chosen by the reason. So if
changed_share is known and no rule on it is chosen, one is put first that costs no good edit: it
rejects edits that changed less than half as much as the good edit that changed least.

Rules do best on the edits that they were fitted to: with a precision of 0.95 on these, they have
less on others. `fit_to_hold` therefore chooses by cross-validation how high to aim. For each aim
from the wanted precision to 1, rules are fitted ten times to the edits without a tenth of the
sources, and tried on that tenth. A higher aim gives more precision and less recall; the aim is
chosen that leaves a margin to both on the held-out edits.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fpe_core.errors import ParameterError
from fpe_core.judging.rules import RejectReason, Rule
from fpe_core.scores.edit_scores import EditScores

_FOLDS = 10
_AIMS = 11
_EDITS_AT_ONCE = 8192  # (choices, edits) matrices would not fit into memory for very large tables
_LOST_SHARES = tuple(number / 40 for number in range(13))
"""The shares of the good edits that one rule may cost: 0 to 0.3."""

_SCORES_OF_REASON = {
    RejectReason.NO_CHANGE: ("changed_share",),
    RejectReason.STRUCTURE_LOST: (
        "structure_distance",
        "lpips",
        "ssim",
        "psnr_db",
        "image_similarity",
        "sharpness_ratio",
    ),
    RejectReason.WRONG_DIRECTION: ("directional_similarity",),
    RejectReason.OFF_TARGET: ("text_score",),
}
_BOUNDED_FROM_ABOVE = frozenset({"structure_distance", "lpips"})
"""Scores that are bounded from above; the others are bounded from below."""
FITTED = frozenset(name for scores in _SCORES_OF_REASON.values() for name in scores)
"""Scores that rules can be fitted to. The others do not point clearly to one reason."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class JudgedEdit:
    """The scores of an edit, and whether a person who looked at it would keep it.

    `source`: an identifier, None if unknown. Edits of one source are alike, so cross-validation
    holds them out together.
    """

    scores: EditScores
    is_good: bool
    source: Hashable = None


@dataclass(frozen=True)
class Quality:
    """How many judged edits some rules accept.

    Attributes:
        precision: share of the accepted edits that are good; None if none is accepted.
        recall: share of the good edits that are accepted; None if none is good.
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
    """The quality of rules on judged edits."""
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


def has_scores(edits: Sequence[JudgedEdit]) -> bool:
    """Whether some edit has a score of `FITTED`."""
    return any(getattr(edit.scores, name) is not None for edit in edits for name in FITTED)


def fit_rules(edits: Sequence[JudgedEdit], precision: float = 0.97) -> tuple[Rule, ...]:
    """The rules with the highest recall among those with at least this precision on these edits.

    If none reaches it, those with the highest precision; among equals the fewest rules. A rule
    against edits that changed nothing may be added, see the module. Scores that no edit has are not
    used.

    Raises:
        ParameterError: no edit is good, none has a score of `FITTED`, or a precision outside 0..1.
    """
    return RuleSearch(edits).rules(precision)


class RuleSearch:
    """Every combination of bounds, tried once on some judged edits; `rules` chooses among them.

    Raises ParameterError if no edit is good, or none has a score of `FITTED`.
    """

    def __init__(self, edits: Sequence[JudgedEdit]) -> None:
        good = np.array([edit.is_good for edit in edits], dtype=bool)
        if not good.any():
            raise ParameterError("no edit is judged good, so there is nothing to keep")
        if not has_scores(edits):
            raise ParameterError(
                f"no edit has a score to fit rules to; those are {', '.join(sorted(FITTED))}"
            )
        values = {name: _Values.of(edits, name) for name in FITTED}
        bounds = {reason: _bounds(reason, values, good) for reason in _SCORES_OF_REASON}
        self._unchanged = _unchanged(edits, good)
        self._first = _pairs(bounds, RejectReason.NO_CHANGE, RejectReason.STRUCTURE_LOST)
        self._second = _pairs(bounds, RejectReason.WRONG_DIRECTION, RejectReason.OFF_TARGET)
        self._hits = np.zeros((len(self._first), len(self._second)))  # (choices, choices), as below
        self._accepted = self._hits.copy()
        for start in range(0, len(edits), _EDITS_AT_ONCE):
            part = slice(start, start + _EDITS_AT_ONCE)
            first, second = (
                _passes(choices, values, part) for choices in (self._first, self._second)
            )  # (choices, edits)
            self._hits += (first * good[part]) @ second.T
            self._accepted += first @ second.T
        self._rules = _counts(self._first)[:, None] + _counts(self._second)[None]

    def rules(self, precision: float) -> tuple[Rule, ...]:
        """As `fit_rules` describes. Raises ParameterError for a precision outside 0..1."""
        if not 0 <= precision <= 1:
            raise ParameterError(f"precision must be 0 to 1, got {precision!r}")
        found = self._hits / np.maximum(self._accepted, 1)
        is_best = self._hits > 0  # never empty: without rules every good edit is accepted
        for rank in (np.minimum(found, precision), self._hits, -self._rules):
            is_best &= rank == rank[is_best].max()
        first, second = np.argwhere(is_best)[0]
        chosen = (*self._first[first], *self._second[second])
        is_there = any(rule.reason == RejectReason.NO_CHANGE for rule in chosen)
        return chosen if is_there else (*self._unchanged, *chosen)


def _unchanged(edits: Sequence[JudgedEdit], good: Mask) -> tuple[Rule, ...]:
    """The rule against edits that changed nothing; () if the good edits give no bound."""
    shares = [
        edit.scores.changed_share
        for edit, is_good in zip(edits, good, strict=True)
        if is_good and edit.scores.changed_share is not None
    ]
    bound = min(shares, default=0.0) / 2
    return (Rule("changed_share", RejectReason.NO_CHANGE, at_least=bound),) if bound > 0 else ()


@dataclass(frozen=True)
class _Values:
    """A score of all edits: float64, and which edits do not have it."""

    numbers: NDArray[np.float64]
    is_missing: Mask

    @classmethod
    def of(cls, edits: Sequence[JudgedEdit], name: str) -> _Values:
        values = [getattr(edit.scores, name) for edit in edits]
        numbers = np.array([math.nan if value is None else value for value in values], np.float64)
        return cls(numbers, np.array([value is None for value in values], dtype=bool))

    def pass_rule(self, rule: Rule, part: slice) -> Mask:
        """The edits that do not break a rule (`Rule.broken_by`)."""
        numbers, is_missing = self.numbers[part], self.is_missing[part]
        if rule.at_least is not None:
            return (numbers >= rule.at_least) | is_missing
        assert rule.at_most is not None  # a rule has one of the two
        return (numbers <= rule.at_most) | is_missing


def _pairs(
    bounds: Mapping[RejectReason, Sequence[Rule]], *reasons: RejectReason
) -> list[tuple[Rule, ...]]:
    """Every choice of one bound or none for each reason."""
    choices: list[tuple[Rule, ...]] = [()]
    for reason in reasons:
        choices += [(*rules, rule) for rules in choices for rule in bounds[reason]]
    return choices


def _passes(
    choices: Sequence[tuple[Rule, ...]], values: Mapping[str, _Values], part: slice
) -> NDArray[np.float32]:
    """Which of some edits pass each choice of rules: 1 or 0."""
    of_rule = {
        rule: values[rule.score].pass_rule(rule, part)
        for rule in dict.fromkeys(rule for rules in choices for rule in rules)
    }
    every = ~np.zeros(len(values[next(iter(values))].numbers[part]), dtype=bool)
    found = np.empty((len(choices), len(every)), np.float32)
    for row, rules in zip(found, choices, strict=True):
        row[:] = np.logical_and.reduce([every, *(of_rule[rule] for rule in rules)])
    return found


def _counts(choices: Sequence[tuple[Rule, ...]]) -> NDArray[np.int64]:
    return np.array([len(rules) for rules in choices])


def _bounds(reason: RejectReason, values: Mapping[str, _Values], good: Mask) -> list[Rule]:
    """The rules that are tried for a reason."""
    found = []
    for name in _SCORES_OF_REASON[reason]:
        of_good = values[name].numbers[good]
        of_good = of_good[np.isfinite(of_good)]  # equal images have an infinite PSNR
        if not len(of_good):
            continue
        is_most = name in _BOUNDED_FROM_ABOVE
        for share in _LOST_SHARES:
            bound = float(np.quantile(of_good, 1 - share if is_most else share))
            bounds = {"at_most": bound} if is_most else {"at_least": bound}
            found.append(Rule(name, reason, **bounds))
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Fitted:
    """Rules fitted to all edits.

    Attributes:
        aim: the precision that was aimed at.
        own: the rules' quality on the edits they were fitted to.
        held_out: the quality of rules with this aim on edits they were not fitted to.
    """

    rules: tuple[Rule, ...]
    aim: float
    own: Quality
    held_out: Quality

    @property
    def sure_precision(self) -> float:
        """Lower bound of the precision on other edits, with 90 % confidence, 0..1.

        Too high if the edits are from few sources, since edits of one source are alike.
        """
        return lower_bound(self.held_out.accepted_good, self.held_out.accepted)

    @property
    def sure_recall(self) -> float:
        """Lower bound of the recall, likewise."""
        return lower_bound(self.held_out.accepted_good, self.held_out.good)


def fit_to_hold(
    edits: Sequence[JudgedEdit], precision: float = 0.95, recall: float = 0.8
) -> Fitted:
    """The rules with the aim that most likely reaches both the wanted precision and recall.

    The margins of both on held-out edits are measured in standard errors. The aim with the largest
    smaller margin is chosen; among equals the highest aim.

    Raises:
        ParameterError: as `fit_rules`.
    """
    steps = [step / (_AIMS - 1) for step in range(_AIMS)]
    aims = [precision * (1 - step) + step for step in steps]

    def rank(fitted: Fitted) -> tuple[float, float]:
        found = fitted.held_out
        margins = (
            _margin(found.accepted_good, found.accepted, precision),
            _margin(found.accepted_good, found.good, recall),
        )
        return min(margins), fitted.aim

    return max(fit_for(edits, aims), key=rank)


def fit_for(edits: Sequence[JudgedEdit], aims: Sequence[float]) -> list[Fitted]:
    """The rules of each aim and their quality. Raises ParameterError as `fit_to_hold` does."""
    everything = RuleSearch(edits)
    folds = [(RuleSearch(others), held_out) for others, held_out in _folds(edits)]
    found = []
    for aim in aims:
        rules = everything.rules(aim)
        held_out = [quality_of(search.rules(aim), edits) for search, edits in folds]
        found.append(Fitted(rules, aim, quality_of(rules, edits), _sum(held_out)))
    return found


def lower_bound(good: int, accepted: int) -> float:
    """Lower bound of the share `good` / `accepted`, 0..1, with 90 % confidence (Wilson 1927)."""
    from scipy.stats import binomtest  # here, because it takes a second to load

    if not accepted:
        return 0.0
    both_sides = binomtest(good, accepted).proportion_ci(confidence_level=0.8, method="wilson")
    return float(both_sides.low)


def _margin(hits: int, of: int, wanted: float) -> float:
    """How far a share is above the wanted one, in the standard errors of the wanted one."""
    if not of:
        return -math.inf
    error = math.sqrt(max(wanted * (1 - wanted), 1e-6) / of)
    return (hits / of - wanted) / error


def _folds(edits: Sequence[JudgedEdit]) -> Iterator[tuple[list[JudgedEdit], list[JudgedEdit]]]:
    """(others, held-out tenth of the sources), for each fold whose others have a good edit and
    scores."""
    names = [number if e.source is None else ("", e.source) for number, e in enumerate(edits)]
    place = {name: number % _FOLDS for number, name in enumerate(dict.fromkeys(names))}
    for fold in range(_FOLDS):
        is_held_out = [place[name] == fold for name in names]
        others = [edit for edit, out in zip(edits, is_held_out, strict=True) if not out]
        held_out = [edit for edit, out in zip(edits, is_held_out, strict=True) if out]
        if held_out and any(edit.is_good for edit in others) and has_scores(others):
            yield others, held_out


def _sum(qualities: Sequence[Quality]) -> Quality:
    return Quality(
        edits=sum(each.edits for each in qualities),
        good=sum(each.good for each in qualities),
        accepted=sum(each.accepted for each in qualities),
        accepted_good=sum(each.accepted_good for each in qualities),
    )

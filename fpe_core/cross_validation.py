"""Rules that hold for edits they were not fitted to: how high to aim is chosen by cross-validation.

    fitted = fit_to_hold(edits, precision=0.95, recall=0.8)
    fitted.rules, fitted.aim, fitted.held_out.precision

Thresholds suit best what they were chosen by: rules with a precision of 0.95 on their own edits
have less on others. So for each aim from the wanted precision to 1, rules are fitted to the edits
without a tenth of the sources, and tried on that tenth, ten times; what the ten make of edits they
have not seen shows what the aim comes to. A higher aim has more precision and less recall; the one
is taken that leaves both a margin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fpe_core.acceptance import Rule
from fpe_core.calibration import JudgedEdit, Quality, Search, has_scores, quality_of

_FOLDS = 10
_AIMS = 11
_ONE_SIDED_90 = 1.2816
"""Standard deviations of the normal distribution that 90 % lie below."""


@dataclass(frozen=True)
class Fitted:
    """Rules fitted to all edits.

    Attributes:
        aim: the precision that was aimed at.
        own: what the rules make of the edits they were fitted to.
        held_out: what rules of that aim made of edits that they were not fitted to.
    """

    rules: tuple[Rule, ...]
    aim: float
    own: Quality
    held_out: Quality

    @property
    def sure_precision(self) -> float:
        """The precision that other edits have with a confidence of 90 %, 0..1.

        Too high where the edits are of few sources, since edits of one source are alike.
        """
        return lower_bound(self.held_out.accepted_good, self.held_out.accepted)

    @property
    def sure_recall(self) -> float:
        """The recall, likewise."""
        return lower_bound(self.held_out.accepted_good, self.held_out.good)


def fit_to_hold(
    edits: Sequence[JudgedEdit], precision: float = 0.95, recall: float = 0.8
) -> Fitted:
    """The aim that most surely has both the wanted precision and the wanted recall.

    That is, on held-out edits it is by most standard errors above the wanted one of the two that it
    is nearer to, or by fewest below. Of equal ones the highest aim.

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
    """What each aim comes to. Raises ParameterError as `fit_to_hold` does."""
    everything = Search(edits)
    folds = [(Search(others), held_out) for others, held_out in _folds(edits)]
    found = []
    for aim in aims:
        rules = everything.rules(aim)
        held_out = [quality_of(search.rules(aim), edits) for search, edits in folds]
        found.append(Fitted(rules, aim, quality_of(rules, edits), _sum(held_out)))
    return found


def lower_bound(good: int, accepted: int) -> float:
    """The share, 0..1, that `good` of `accepted` stand for with 90 % confidence (Wilson 1927)."""
    if not accepted:
        return 0.0
    share, spread = good / accepted, _ONE_SIDED_90**2 / accepted
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    return max(0.0, (middle - half) / (1 + spread))


def _margin(hits: int, of: int, wanted: float) -> float:
    """How far a share is above the wanted one, in the standard errors of the wanted one."""
    if not of:
        return -math.inf
    error = math.sqrt(max(wanted * (1 - wanted), 1e-6) / of)
    return (hits / of - wanted) / error


def _folds(edits: Sequence[JudgedEdit]) -> Iterator[tuple[list[JudgedEdit], list[JudgedEdit]]]:
    """(the others, a tenth of the sources), as often as the others have a good edit and scores."""
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

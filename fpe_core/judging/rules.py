"""Whether an edit is good enough to keep: rules over its scores, by type of edit.

    few = {"score": "changed_share", "at_least": 0.02, "reason": "no_change"}
    rules = Rules.from_dict({"colour": [few]})
    rules.verdict("colour", scores).reason     # None: accepted

The first broken rule gives the reason. A rule whose score is None is skipped: the score was not
computed, or does not exist for this edit, such as directional similarity without a source prompt. A
run counts the edits that were accepted with a skipped rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from fpe_core.errors import ParameterError
from fpe_core.scores.edit_scores import SCORES, EditScores

OTHER_TYPES = "other"
"""The key of the rules for types of edit that have none of their own."""


class RejectReason(StrEnum):
    """Why an edit that was made is not part of the dataset. No other reasons exist."""

    NO_CHANGE = "no_change"
    STRUCTURE_LOST = "structure_lost"
    WRONG_DIRECTION = "wrong_direction"
    OFF_TARGET = "off_target"
    SOURCE_NOT_RECONSTRUCTED = "source_not_reconstructed"
    """Not from a rule: the model cannot reconstruct its source (`reconstruction`)."""


REASONS_OF_RULES = frozenset(RejectReason) - {RejectReason.SOURCE_NOT_RECONSTRUCTED}


@dataclass(frozen=True)
class Rule:
    """One condition: a score must be at least, or at most, a bound; the bound itself is allowed.

    Raises ParameterError for an unknown score or reason, or unless there is exactly one bound.
    """

    score: str
    reason: RejectReason
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ParameterError(f"no score {self.score!r}; there are {', '.join(sorted(SCORES))}")
        if (self.at_least is None) == (self.at_most is None):
            raise ParameterError(f"a rule on {self.score} needs one of at_least and at_most")
        known = [reason.value for reason in RejectReason if reason in REASONS_OF_RULES]
        if self.reason not in known:
            raise ParameterError(f"no reason {self.reason!r}; there are {', '.join(known)}")
        object.__setattr__(self, "reason", RejectReason(self.reason))

    def broken_by(self, value: float | None) -> bool:
        if value is None:
            return False
        if self.at_least is not None:
            return not value >= self.at_least
        return self.at_most is not None and not value <= self.at_most

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the bound that is None; `Rule(**rule.to_dict()) == rule`."""
        bound = {"at_least": self.at_least, "at_most": self.at_most}
        given = {name: value for name, value in bound.items() if value is not None}
        return {"score": self.score, **given, "reason": self.reason.value}


@dataclass(frozen=True)
class Verdict:
    """`reason` is None for an accepted edit; `message` says which rule was broken, and how."""

    reason: RejectReason | None
    message: str = ""

    @property
    def is_accepted(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class Rules:
    """Rules by type of edit; those of OTHER_TYPES apply to types that have none of their own."""

    by_type: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[Mapping[str, Any]]]) -> Self:
        """Raises ParameterError, naming the type."""
        by_type: dict[str, tuple[Rule, ...]] = {}
        for name, rules in values.items():
            try:
                by_type[name] = tuple(Rule(**rule) for rule in rules)
            except (ParameterError, TypeError) as error:
                raise ParameterError(f"rules of {name!r}: {error}") from error
        return cls(by_type)

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """JSON-able; the reverse of `from_dict`."""
        return {name: [rule.to_dict() for rule in rules] for name, rules in self.by_type.items()}

    @property
    def scores(self) -> frozenset[str]:
        """The scores that the rules use."""
        return frozenset(rule.score for rules in self.by_type.values() for rule in rules)

    def of(self, edit_type: str) -> tuple[Rule, ...]:
        return self.by_type.get(edit_type, self.by_type.get(OTHER_TYPES, ()))

    def verdict(self, edit_type: str, scores: EditScores) -> Verdict:
        """Rejected by the first broken rule of the type; accepted if there is none."""
        for rule in self.of(edit_type):
            value = getattr(scores, rule.score)
            if rule.broken_by(value):
                bound = rule.at_most if rule.at_least is None else rule.at_least
                side = "below" if rule.at_least is not None else "above"
                return Verdict(rule.reason, f"{rule.score} {value:.4g} is {side} {bound:.4g}")
        return Verdict(None)

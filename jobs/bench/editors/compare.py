"""Compares all methods: tunes each on validation scenes, then edits test scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fpe_core import EditParameters
from fpe_core.still_life.benchmark.edits import seeds_of
from jobs.bench.editors.figures import score_of
from jobs.bench.editors.methods import METHODS, Compared
from jobs.bench.editors.parts import Parts, Row, Setting

PUBLISHED, TUNED = "published", "tuned"
COLUMNS = (PUBLISHED, TUNED)


@dataclass(frozen=True)
class Tuning:
    """A method's candidates on validation scenes.

    Attributes:
        candidates: the parameters that were tried, the published ones first.
        scores: success x structure of each, the mean over the types of edit, 0..1.
    """

    compared: Compared
    candidates: tuple[EditParameters, ...]
    scores: tuple[float, ...]

    @property
    def chosen(self) -> EditParameters:
        """Those with the highest score; of equal ones the first."""
        return self.candidates[self.scores.index(max(self.scores))]


def tune(
    parts: Parts, recommended: EditParameters, scenes: int, methods: Sequence[Compared] = METHODS
) -> list[Tuning]:
    """Edits the first validation scenes with every candidate of every method.

    Args:
        recommended: the checkpoint's own parameters.
        scenes: how many scenes, 1..1000; five edits of each.
    """
    settings = [
        Setting(each, parameters) for each in methods for parameters in each.candidates(recommended)
    ]
    rows = parts.rows(settings, seeds_of("validation", scenes), "validation scenes")
    per_setting = len(rows) // len(settings)
    scores = iter(score_of(rows[at : at + per_setting]) for at in range(0, len(rows), per_setting))
    found = []
    for each in methods:
        candidates = tuple(each.candidates(recommended))
        found.append(Tuning(each, candidates, tuple(next(scores) for _ in candidates)))
    return found


def compare(parts: Parts, tunings: Sequence[Tuning], scenes: int) -> list[Row]:
    """Edits the first test scenes with every method, published and tuned.

    A method whose published setting was also the best makes its edits once.

    Returns:
        rows of PART_SCHEMA with another key, "column": one of COLUMNS.
    """
    chosen = {
        (column, each.compared.name): Setting(each.compared, parameters)
        for each in tunings
        for column, parameters in zip(COLUMNS, (each.candidates[0], each.chosen), strict=True)
    }
    different = list(dict.fromkeys(chosen.values()))
    rows = parts.rows(different, seeds_of("test", scenes), "test scenes")
    per_setting = len(rows) // len(different)
    of_setting = {
        setting: rows[number * per_setting : (number + 1) * per_setting]
        for number, setting in enumerate(different)
    }
    return [
        {"column": column, **row}
        for column in COLUMNS
        for (its, _), setting in chosen.items()
        if its == column
        for row in of_setting[setting]
    ]

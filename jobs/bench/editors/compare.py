"""Compares all methods: tunes each on validation scenes, then edits test scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fpe_core import EditParameters, Inside
from fpe_core.still_life.benchmark.edits import seeds_of
from jobs.bench.editors.figures import score_of
from jobs.bench.editors.methods import Compared
from jobs.bench.editors.parts import Parts, Row, Setting

PUBLISHED, TUNED, BOUND = "published", "tuned", "tuned, inside masks"
COLUMNS = (PUBLISHED, TUNED, BOUND)


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


def tune(parts: Parts, methods: Sequence[Compared], scenes: int) -> list[Tuning]:
    """Edits the first validation scenes with every candidate of every method.

    Args:
        methods: of `jobs.bench.editors.methods.METHODS`.
        scenes: how many scenes, 1..1000; five edits of each.
    """
    candidates = {
        each: tuple(each.candidates(parts.editor_of(each).checkpoint.default_parameters))
        for each in methods
    }
    settings = [Setting(each, own) for each, tried in candidates.items() for own in tried]
    rows = parts.rows(settings, seeds_of("validation", scenes), "validation scenes")
    of_setting = _by_setting(rows, settings)
    return [
        Tuning(each, tried, tuple(score_of(of_setting[Setting(each, own)]) for own in tried))
        for each, tried in candidates.items()
    ]


def compare(parts: Parts, tunings: Sequence[Tuning], scenes: int) -> list[Row]:
    """Edits the first test scenes with every method: published, tuned, and tuned with masks that
    bind (`EditParameters.inside`), which are the renderer's.

    A method whose published setting was also the best makes its edits once.

    Returns:
        rows of PART_SCHEMA with another key, "column": one of COLUMNS.
    """
    chosen = {
        (column, each.compared.name): _setting(each, column)
        for column in COLUMNS
        for each in tunings
    }
    different = list(dict.fromkeys(chosen.values()))
    rows = parts.rows(different, seeds_of("test", scenes), "test scenes")
    of_setting = _by_setting(rows, different)
    return [
        {"column": column, **row}
        for (column, _), setting in chosen.items()
        for row in of_setting[setting]
    ]


def _setting(tuning: Tuning, column: str) -> Setting:
    """A method's setting in one of COLUMNS."""
    if column == BOUND:
        return Setting(tuning.compared.bound(), replace(tuning.chosen, inside=Inside()))
    chosen = tuning.chosen if column == TUNED else tuning.candidates[0]
    return Setting(tuning.compared, chosen)


def _by_setting(rows: Sequence[Row], settings: Sequence[Setting]) -> dict[Setting, Sequence[Row]]:
    """The rows of each setting; all have equally many, in the order of the settings."""
    count = len(rows) // len(settings)
    return {each: rows[at * count : (at + 1) * count] for at, each in enumerate(settings)}

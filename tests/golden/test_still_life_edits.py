"""The built-in model really edits: a fast part of the benchmark, with bounds from past results.

The bounds are the figures of the test split (`fpe bench edits`, 40 scenes) less a margin for the
few scenes here. Arms are ordered as the paper says: without replacement structure is lost, with all
layers replaced edits of shape are blocked, and the middle keeps both.
"""

from __future__ import annotations

import pytest

from fpe_core import Editor, load_checkpoint
from fpe_core.still_life.benchmark.benchmark import (
    FactorFigures,
    Floors,
    JudgedOutput,
    figures_by_factor,
    mean_scores,
    measure_floors,
    run_benchmark,
)
from fpe_core.still_life.benchmark.edits import seeds_of
from jobs.bench.arms import ALL, CHOSEN, NONE, three_arms

SEEDS = seeds_of("test", 6)

Figures = dict[tuple[str, str], FactorFigures]


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor(load_checkpoint("builtin:still-life", device="cpu"), max_rows=32)


@pytest.fixture(scope="module")
def judged(editor: Editor) -> list[JudgedOutput]:
    arms = three_arms(editor, editor.checkpoint.default_parameters)
    return list(run_benchmark(editor, SEEDS, arms))


@pytest.fixture(scope="module")
def figures(judged: list[JudgedOutput]) -> Figures:
    return figures_by_factor(judged)


@pytest.fixture(scope="module")
def floors(editor: Editor) -> list[Floors]:
    return list(measure_floors(editor, SEEDS, editor.checkpoint.default_parameters))


@pytest.mark.parametrize("factor", ["colour", "background"])
def test_colours_and_backgrounds_are_what_was_asked_for_in_place(
    figures: Figures, factor: str
) -> None:
    assert figures[CHOSEN, factor].success >= 0.83
    assert figures[CHOSEN, factor].structure >= 0.82


@pytest.mark.parametrize(("factor", "least"), [("style", 0.8), ("material", 0.65), ("shape", 0.65)])
def test_harder_edits_mostly_succeed(figures: Figures, factor: str, least: float) -> None:
    assert figures[CHOSEN, factor].success >= least


def test_structure_rises_from_none_over_the_middle_to_all(figures: Figures) -> None:
    none, middle, every = (
        figures[arm, "colour"].structure + figures[arm, "background"].structure
        for arm in (NONE, CHOSEN, ALL)
    )
    assert none + 0.06 < middle
    assert middle + 0.03 < every


def test_all_layers_block_edits_of_shape_and_the_middle_does_not(figures: Figures) -> None:
    none, middle, every = (figures[arm, "shape"].success for arm in (NONE, CHOSEN, ALL))
    assert every < none
    assert every <= middle


def test_the_middle_is_better_than_none(judged: list[JudgedOutput]) -> None:
    scores = mean_scores(judged)
    assert scores[CHOSEN] > scores[NONE] + 0.01


def test_what_should_not_change_stays(figures: Figures) -> None:
    kept_psnr_db = figures[CHOSEN, "colour"].kept_psnr_db
    assert kept_psnr_db is not None
    assert kept_psnr_db >= 22.0


def test_inversion_loses_little_beyond_the_autoencoder(floors: list[Floors]) -> None:
    lost_db = [floor.autoencoder_psnr_db - floor.inversion_psnr_db for floor in floors]
    assert sum(lost_db) / len(lost_db) < 3.0

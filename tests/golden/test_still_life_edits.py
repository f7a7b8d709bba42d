"""The built-in model really edits: a fast part of the benchmark, held to what it reached.

The bounds are the figures of the test split (`fpe bench edits`, 48 scenes) less a margin for the
few scenes here. Arms are ordered as the paper says: without replacement structure is lost, with all
of it the edit is blocked, and what the model recommends lies above both.
"""

from __future__ import annotations

import pytest

from fpe_core import Editor, load_checkpoint
from fpe_core.still_life.benchmark import (
    FactorFigures,
    Floors,
    JudgedEdit,
    figures_by_factor,
    mean_scores,
    measure_floors,
    run_benchmark,
)
from fpe_core.still_life.benchmark_edits import seeds_of
from jobs.bench_arms import ALL, CHOSEN, NONE, three_arms

SEEDS = seeds_of("test", 6)

Figures = dict[tuple[str, str], FactorFigures]


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor(load_checkpoint("builtin:still-life", device="cpu"), max_rows=32)


@pytest.fixture(scope="module")
def judged(editor: Editor) -> list[JudgedEdit]:
    arms = three_arms(editor, editor.checkpoint.default_parameters)
    return list(run_benchmark(editor, SEEDS, arms))


@pytest.fixture(scope="module")
def figures(judged: list[JudgedEdit]) -> Figures:
    return figures_by_factor(judged)


@pytest.fixture(scope="module")
def floors(editor: Editor) -> list[Floors]:
    return list(measure_floors(editor, SEEDS, editor.checkpoint.default_parameters))


@pytest.mark.parametrize("factor", ["colour", "background"])
def test_colours_and_backgrounds_are_what_was_asked_for(figures: Figures, factor: str) -> None:
    assert figures[CHOSEN, factor].success >= 0.8
    assert figures[CHOSEN, factor].structure >= 0.8


def test_the_settings_chosen_are_better_than_either_extreme(judged: list[JudgedEdit]) -> None:
    scores = mean_scores(judged)
    assert scores[CHOSEN] > scores[NONE]
    assert scores[CHOSEN] > scores[ALL]


def test_without_replacement_structure_is_lost(figures: Figures) -> None:
    for factor in ("colour", "background"):
        assert figures[NONE, factor].structure < figures[CHOSEN, factor].structure


def test_replacing_everything_blocks_the_edit(figures: Figures) -> None:
    assert figures[ALL, "shape"].success < figures[NONE, "shape"].success


def test_what_should_not_change_stays(figures: Figures) -> None:
    kept_psnr_db = figures[CHOSEN, "colour"].kept_psnr_db
    assert kept_psnr_db is not None
    assert kept_psnr_db >= 22.0


def test_inversion_loses_little_beyond_the_autoencoder(floors: list[Floors]) -> None:
    lost_db = [floor.autoencoder_psnr_db - floor.inversion_psnr_db for floor in floors]
    assert sum(lost_db) / len(lost_db) < 3.0

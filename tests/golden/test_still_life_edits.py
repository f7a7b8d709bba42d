"""The built-in model really edits: a fast part of the benchmark, held to what it reached when shipped.

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

SEEDS = seeds_of("test", 8)

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

"""Means of edits, the winner of each type, and what is not applicable."""

from __future__ import annotations

from typing import Any

import pytest

from fpe_core import EditParameters
from fpe_core.still_life.scene import FACTORS
from jobs.bench.editors.compare import Tuning
from jobs.bench.editors.figures import best_of_type, figures_of, score_of
from jobs.bench.editors.methods import METHOD_NAMES, METHODS, methods_named
from jobs.bench.editors.tables import (
    AS_GOOD,
    BEST,
    NOT_APPLICABLE,
    method_table,
    tuning_table,
    type_table,
)
from jobs.terminal.console import console


def row(method: str, seed: int, score: float | None, factor: str = "colour") -> dict[str, Any]:
    made = score is not None
    return {
        "column": "tuned",
        "method": method,
        "seed": seed,
        "factor": factor,
        "not_applicable": "" if made else "no mask",
        "success": made and score > 0 if made else None,
        "structure": score,
        "score": score,
        "psnr_db": 20.0 if made else None,
        "kept_psnr_db": 30.0 if made and factor != "style" else None,
        "unet_rows": 50.0 if made else None,
        "seconds": 0.5 if made else None,
    }


ROWS = [
    *(row("fpe", seed, 0.7) for seed in range(4)),
    *(row("p2p", seed, score) for seed, score in enumerate((0.9, 0.8, 0.9, 0.8))),
    *(row("pnp", seed, score) for seed, score in enumerate((1.0, 0.5, 1.0, 0.8))),
    *(row("blended", seed, None) for seed in range(4)),
]


def printed(table: Any) -> str:
    wide = console()
    with wide.capture() as capture:
        wide.print(table)
    return capture.get()


def test_the_best_of_a_type_is_found_and_those_that_are_as_good() -> None:
    assert best_of_type(ROWS, "colour") == ("p2p", {"pnp"}), "fpe is always behind"
    assert best_of_type(ROWS, "shape") == (None, frozenset())
    assert best_of_type([row("fpe", 0, 0.5), row("ddim", 0, 0.4)], "colour") == ("fpe", set())


@pytest.mark.parametrize("winner", ["fpe", "p2p", "pnp"])
def test_the_table_marks_the_winner_whoever_it_is(winner: str) -> None:
    swapped = {"p2p": winner, winner: "p2p"}
    rows = [{**each, "method": swapped.get(each["method"], each["method"])} for each in ROWS]
    lines = {
        line.split()[0]: line
        for line in printed(type_table(rows, "tuned")).splitlines()[1:]
        if line.split()
    }
    assert f"0.85{BEST}" in lines[winner]
    assert "".join(lines.values()).count(BEST) == 1
    assert "".join(lines.values()).count(AS_GOOD) == 1
    assert lines["blended"].split()[1:].count(NOT_APPLICABLE) == len(FACTORS)


def test_an_edit_that_cannot_be_made_is_counted_and_not_judged() -> None:
    half = [row("blended", seed, 0.6) for seed in range(2)]
    half += [row("blended", seed, None, "style") for seed in range(2)]
    figures = figures_of(half)
    assert figures is not None
    assert (figures.made, figures.asked) == (2, 4)
    assert figures.score == pytest.approx(0.6)
    assert figures_of(half[2:]) is None
    assert score_of(half[2:]) == 0.0
    text = printed(method_table([*half, *(row("pnp", 0, None),)], "tuned"))
    assert "2 of 4" in text
    assert "0 of 1" in text


def test_types_of_edit_count_the_same() -> None:
    rows = [row("fpe", seed, 1.0) for seed in range(3)] + [row("fpe", 0, 0.0, "style")]
    figures = figures_of(rows)
    assert figures is not None
    assert figures.score == pytest.approx(0.5)
    assert figures.kept_psnr_db == pytest.approx(30.0)


def test_every_method_has_the_same_budget_and_the_same_steps() -> None:
    recommended = EditParameters(steps=10, guidance_scale=4.0, width_px=64, height_px=64)
    assert len(set(METHOD_NAMES)) == len(METHODS)
    for each in METHODS:
        tried = each.candidates(recommended)
        assert len(tried) == len(set(tried)) == 5, each.name
        assert tried[0].method == each.published
        assert tried[0].guidance_scale == 4.0
        assert {parameters.steps for parameters in tried} == {10}
        assert {parameters.method.name for parameters in tried} == {each.published.name}


def test_what_differs_between_settings_of_an_inversion_is_shown() -> None:
    recommended = EditParameters(steps=10, guidance_scale=4.0, width_px=64, height_px=64)
    (compared,) = methods_named(["ddim, edit-friendly"])
    tried = tuple(compared.candidates(recommended))
    table = tuning_table([Tuning(compared, tried, (0.1,) * len(tried))])
    assert list(table.columns[1].cells) == [
        "guidance_scale 4, inversion edit_friendly, skipped_fraction 0.36, "
        "source_guidance_scale 3.5",
        "skipped_fraction 0.2",
        "skipped_fraction 0.5",
        "guidance_scale 3",
        "guidance_scale 6",
    ]

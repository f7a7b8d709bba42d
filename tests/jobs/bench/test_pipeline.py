"""`fpe bench pipeline`: a run and the editor alone do the same edits, or nothing is compared."""

from __future__ import annotations

import json
import pathlib

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.terminal.exits import OK, STOPPED

STEPS, REPLACED = 3, 2
SOURCES, EDITS = 2, 5


def bench(out: pathlib.Path, *settings: str) -> tuple[int, str, str]:
    small = ("--scenes", str(SOURCES), "--sources-per-block", "1", "--rounds", "1")
    result = CliRunner().invoke(
        app, ["bench", "pipeline", *settings, *small, "--device", "cpu", "--out", str(out)]
    )
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.endurance
@pytest.mark.usefixtures("ray_cluster")
def test_both_ways_are_measured_on_the_same_edits(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "new"
    settings = (f"edit.steps={STEPS}", "edit.replaced_fraction=0.7", "edit.layers.first=1")
    code, printed, err = bench(out, *settings, "edit.layers.last=16")
    assert code == OK, err
    (measured,) = json.loads((out / "pipeline.json").read_text())["rounds"]
    assert measured["edits"] == SOURCES * EDITS
    of_a_source = STEPS + REPLACED + 1 + (2 * STEPS - 1) * EDITS
    assert measured["unet_rows"] == SOURCES * of_a_source
    assert 0 < measured["model_s"] < measured["span_s"] < measured["run_s"]
    assert measured["share"] == pytest.approx(measured["bare_s"] / measured["span_s"])
    for word in ("editor alone", "model busy", "the aim is 0.95"):
        assert word in printed
    assert len(list((out / "run-0").glob("part-*/edited/*"))) == SOURCES * EDITS

    code, _, err = bench(out)
    assert code == STOPPED
    assert "give --out a new folder" in err


@pytest.mark.usefixtures("ray_cluster")
def test_nothing_is_compared_where_edits_failed(tmp_path: pathlib.Path) -> None:
    code, printed, err = bench(
        tmp_path / "new", "edit.steps=2", "images.max_bytes=100", "failures.max_share=1"
    )
    assert code == STOPPED
    assert "edits failed" in err
    assert "editor alone" not in printed

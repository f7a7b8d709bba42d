"""`fpe bench` as it is typed: what it prints and writes."""

from __future__ import annotations

import json
import pathlib
import re

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from fpe_core import (
    Editor,
    EditParameters,
    LayersByRange,
    ParameterError,
    load_checkpoint,
    load_scorer,
)
from fpe_core.still_life import FACTORS, render
from fpe_core.still_life.benchmark.benchmark import JudgedOutput
from fpe_core.still_life.benchmark.edits import edits_of_scene
from fpe_core.still_life.benchmark.judgement import judge
from jobs.bench import tables as bench_tables
from jobs.bench.arms import findings_arms, grid_arms, preset_arms, settings_from_text, three_arms
from jobs.bench.tables import clip_scores, mean_directional
from jobs.cli import app
from jobs.terminal.exits import OK, USAGE
from pipeline.plan.group_shape import GroupShape


def fpe(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fpe` with these arguments."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="session")
def editor(tiny_checkpoint: pathlib.Path) -> Editor:
    return Editor(load_checkpoint(tiny_checkpoint, device="cpu"))


def test_edits_are_judged_printed_and_written(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    where = ("--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path))
    code, out, _ = fpe("bench", "edits", "steps=2", "--scenes", "2", *where)
    assert code == OK
    for word in (*FACTORS, "chosen", "none", "all", "2 steps, guidance 3", "autoencoder alone"):
        assert word in out
    tables = out[: out.index("Floors")]
    assert max(map(len, tables.splitlines())) <= 80, "fits a narrow terminal"

    table = pq.read_table(tmp_path / "edits.parquet")
    assert table.schema.equals(bench_tables.EDITS_SCHEMA)
    rows = table.to_pylist()
    assert len(rows) == 2 * 5 * 3
    assert {(row["arm"], row["seed"], row["factor"]) for row in rows} == {
        (arm, seed, factor)
        for arm in ("chosen", "none", "all")
        for seed in (2000, 2001)
        for factor in FACTORS
    }
    assert {json.loads(row["parameters"])["steps"] for row in rows} == {2}
    for row in rows:
        assert row["success"] == (row["read_value"] == row["target_value"])
        assert 0.0 <= row["structure"] <= 1.0
        assert -1.0 <= row["text_score"] <= 1.0
    floors = pq.read_table(tmp_path / "floors.parquet")
    assert floors.schema.equals(bench_tables.FLOORS_SCHEMA)
    assert floors.column("seed").to_pylist() == [2000, 2001]
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 11 * 128
        assert grid.height > 2 * 128


def test_a_clip_sees_which_edits_are_right() -> None:
    edits = [edit for seed in (3000, 3001) for edit in edits_of_scene(seed)]
    right = [JudgedOutput("a", e, render(e.answer), judge(e, render(e.answer))) for e in edits]
    left = [JudgedOutput("a", e, render(e.source), judge(e, render(e.source))) for e in edits]
    scorer = load_scorer("builtin:still-life", device="cpu")
    scores = clip_scores(scorer, [*right, *left])
    assert [score.directional for score in scores[len(right) :]] == [None] * len(left)
    for good, bad in zip(scores[: len(right)], scores[len(right) :], strict=True):
        assert good.directional is not None
        assert good.directional > 0.7
        assert good.text > bad.text
    assert mean_directional(right, scores[: len(right)], success=False) is None
    mean = mean_directional(right, scores[: len(right)], success=True)
    assert mean is not None
    assert mean > 0.85


def test_scores_can_be_left_out(tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> None:
    where = ("--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path))
    code, out, _ = fpe("bench", "edits", "steps=1", "--scenes", "1", "--scorer", "none", *where)
    assert (code, "Directional" in out) == (OK, False)
    assert pq.read_table(tmp_path / "edits.parquet")["text_score"].null_count == 15


def test_findings_are_printed_plotted_and_written(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    where = ("--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path))
    code, out, _ = fpe("bench", "findings", "--scenes", "1", *where)
    assert code == OK
    for arm in ("layers none", "layers 3-13", "fraction 0.4", "layers 1-16 + cross"):
        assert arm in out
    rows = pq.read_table(tmp_path / "edits.parquet").to_pylist()
    crossed = {row["arm"] for row in rows if "cross" in row["arm"]}
    assert crossed == {"layers 3-13 + cross", "layers 1-16 + cross"}
    for picture in ("findings.png", "grid.png"):
        with Image.open(tmp_path / picture) as image:
            image.load()
            assert image.width > 500


def test_presets_are_timed_judged_and_written(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    where = ("--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path))
    few = ("--scenes", "1", "--timed-scenes", "1", "--rounds", "2")
    code, out, _ = fpe("bench", "presets", *few, *where)
    assert code == OK
    for word in ("exact again", "balanced", "fast", "CPU s", *FACTORS, "all"):
        assert word in out
    assert max(map(len, out[: out.index("threads")].splitlines()[:-1])) <= 80

    report = json.loads((tmp_path / "presets.json").read_text())
    assert report["seeds"] == [2000]
    assert set(report["arms"]) == {"exact", "balanced", "fast"}
    costs = {cost["arm"]: cost for cost in report["costs"]}
    assert list(costs) == ["exact", "balanced", "fast", "exact again"]
    for name, arm in report["arms"].items():
        parameters = EditParameters.from_dict(arm["parameters"])
        rows = GroupShape.of(parameters, 5, synthetic=False).unet_rows
        assert costs[name]["unet_rows"] == rows
        assert len(costs[name]["wall_s"]) == len(costs[name]["cpu_s"]) == 2
        by_factor = [arm["quality"][factor] for factor in FACTORS]
        assert arm["quality"]["all"]["edits"] == 5
        assert arm["quality"]["all"]["success"] == sum(f["success"] for f in by_factor) / 5
    # Of four recommended steps the two presets may leave the same number.
    assert costs["fast"]["unet_rows"] <= costs["balanced"]["unet_rows"]
    assert costs["balanced"]["unet_rows"] < costs["exact"]["unet_rows"]
    assert costs["exact"]["times_exact"] == 1.0
    for name, arm in report["arms"].items():  # quality and speed of a preset stand in one row
        success, rows = arm["quality"]["all"]["success"], costs[name]["unet_rows_per_edit"]
        steps = arm["parameters"]["steps"]
        (line,) = re.findall(rf"^ +{name} +{steps} +{success:.2f} .*$", out, re.MULTILINE)
        assert f" {rows:.1f} " in line
        assert f" {costs[name]['edits_per_s']:.2f} " in line
    rows = pq.read_table(tmp_path / "edits.parquet").to_pylist()
    assert {(row["arm"], row["factor"]) for row in rows} == {
        (arm, factor) for arm in ("exact", "balanced", "fast") for factor in FACTORS
    }


def test_the_grid_prints_what_the_presets_print(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    where = ("--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path))
    code, out, _ = fpe("bench", "presets", "--grid", "--scenes", "1", "--rounds", "0", *where)
    assert code == OK
    head, *_ = [line.split() for line in out.splitlines() if "success" in line]
    assert head[:4] == ["speed", "steps", "success", "structure"]
    untimed = re.findall(r"^ +(\d+ [\d.]+-[\d.]+) .* - +- +- +-", out, re.MULTILINE)
    assert untimed == list(json.loads((tmp_path / "presets.json").read_text())["arms"])
    assert "noise" not in out, "nothing was timed"


def test_presets_are_chosen_from_a_grid_that_begins_exact() -> None:
    recommended = EditParameters(steps=10, layers=LayersByRange(4, 14))
    arms = grid_arms(recommended)
    assert arms[0].parameters == recommended
    assert len({arm.name for arm in arms}) == len({arm.parameters for arm in arms}) == len(arms)
    assert {arm.parameters.steps for arm in arms} == {10, 6, 4}
    exact, *presets = preset_arms(recommended)
    assert exact.parameters == recommended
    assert all(arm.parameters in [each.parameters for each in arms] for arm in presets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["guidance=5"], "unknown edit parameter guidance; allowed: steps, guidance_scale"),
        (["guidance_interval=[1, 0]"], "guidance_interval must start before it ends"),
        (["guidance"], "expected KEY=VALUE"),
        (["steps=0"], "steps must be 1 to 999"),
        (["--split", "train"], "train"),
        (["--scenes", "0"], "greater than or equal to 1"),
        (["--checkpoint", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_mistakes_are_said_before_anything_is_computed(
    arguments: list[str], message: str, tmp_path: pathlib.Path
) -> None:
    code, _, err = fpe("bench", "edits", *arguments, "--out", str(tmp_path / "new"))
    assert code == USAGE
    assert message in " ".join(err.split())
    assert not (tmp_path / "new").exists()


def test_the_three_arms_differ_in_what_they_replace(editor: Editor) -> None:
    chosen, none, every = three_arms(editor, EditParameters(layers=LayersByRange(4, 14)))
    assert (chosen.parameters.layers, every.parameters.layers) == (
        LayersByRange(4, 14),
        LayersByRange(1, 16),
    )
    assert (none.parameters.replaced_fraction, every.parameters.replaced_fraction) == (0.0, 0.8)


def test_the_findings_are_those_of_the_paper(editor: Editor) -> None:
    parameters = EditParameters(layers=LayersByRange(2, 9), replaced_fraction=0.4)
    layers, fractions, cross = findings_arms(editor, parameters).values()
    assert [str(arm.parameters.layers) for arm in layers[1:]] == [
        "1-3",
        "3-13",
        "4-14",
        "12-16",
        "1-16",
    ]
    assert [arm.parameters.replaced_fraction for arm in layers] == [0.0, *[0.8] * 5]
    assert {arm.parameters.layers for arm in fractions} == {parameters.layers}
    assert [arm.parameters.replaced_fraction for arm in fractions] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert [arm.parameters.replace_cross_attention for arm in cross] == [False, True, False, True]


def test_settings_are_yaml() -> None:
    assert settings_from_text(["steps=20", "layers={first: 4, last: 14}", "negative_prompt="]) == {
        "steps": 20,
        "layers": {"first": 4, "last": 14},
        "negative_prompt": None,
    }
    with pytest.raises(ParameterError, match="not a valid YAML value"):
        settings_from_text(["layers={first"])

"""`fpe bench speed`: nothing wrong is timed, and what is counted is what was run."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters
from typer.testing import CliRunner

from fpe_core import Editor, EditParameters
from jobs.cli import app
from jobs.exits import OK, STOPPED, USAGE
from jobs.speed.arms import exact_arms
from jobs.speed.clock import PHASES, PhaseClock
from jobs.speed.flops import count_row, minimal_flops
from jobs.speed.gate import CONTROLS, TOLERANCE, Comparison, farthest, pass_gate
from jobs.speed.models import LAYERS, SHAPES, build_random
from jobs.speed.presets import PRESETS, Target
from jobs.speed.rounds import REST, Measured, Run
from jobs.speed.workload import make_workload

STEPS = 3
"""The fewest of which two replace maps."""

ARMS = ["A", "B", "B+", "C", "D", "D again"]


def fpe(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"TERM": "dumb"})
    return result.exit_code, result.stdout, result.stderr


def bench(folder: pathlib.Path, *arguments: str) -> tuple[int, str, str]:
    """The command for a GPU, on the smallest model and a CPU."""
    where = ("--device", "cpu", "--dtype", "float32", "--out", str(folder))
    small = ("--model", "micro", "--steps", str(STEPS), "--rounds", "1")
    sweep = ("--sources", "2", "--edits", "2")
    return fpe("bench", "speed", "--preset", "gpu", *small, *sweep, *where, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("speed")


@pytest.fixture(scope="module")
def printed(folder: pathlib.Path) -> str:
    """What the command prints. E has a test of its own: tracing the UNet takes longer than all
    the rest, and is to be paid once."""
    gate = ("--gate-size", "32")
    code, out, err = bench(folder, "--compiler", "none", "--price-per-hour", "3.6", *gate)
    assert code == OK, err
    return out


@pytest.fixture(scope="module")
def report(printed: str, folder: pathlib.Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "speed.json").read_text())
    return read


@pytest.fixture(scope="module")
def measured(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["arm"]: each for each in report["models"][0]["measured"]}


def test_every_arm_passes_the_gate_and_every_mistake_fails_it(report: dict[str, Any]) -> None:
    gate = report["models"][0]["gate"]
    assert [each["name"] for each in gate] == [*ARMS[1:-1], *CONTROLS]
    for each in gate:
        assert each["ok"], each
        assert each["is_control"] == (each["name"] in CONTROLS)
        assert (each["distance"] > 50 * TOLERANCE) == each["is_control"], each


def test_rows_are_those_of_the_procedures(measured: dict[str, dict[str, Any]]) -> None:
    assert list(measured) == ARMS
    rows = {arm: each["unet_rows_per_edit"] for arm, each in measured.items()}
    assert rows["A"] == rows["B"] == (2 + 4) * STEPS
    assert rows["B+"] == (2 * STEPS + 4 * STEPS * 2) / 2

    parameters = EditParameters(steps=STEPS, layers=LAYERS, width_px=64, height_px=64)
    work = make_workload(2, 2, parameters)
    editor = Editor(build_random("micro", SHAPES["micro"], torch.device("cpu")))
    inversion = editor.invert(work.images, work.source_prompts, parameters)
    edited = editor.edit(inversion, work.target_prompts)
    assert rows["D"] == (inversion.unet_rows + edited.unet_rows) / 4
    assert rows["C"] == rows["D"] == rows["D again"]
    assert rows["D"] < rows["B+"]


def test_the_report_holds_every_raw_figure(
    report: dict[str, Any], measured: dict[str, dict[str, Any]]
) -> None:
    assert set(report["machine"]) == {"device", "threads", "torch", "python", "date"}
    (model,) = report["models"]
    assert model["parameters"]["steps"] == STEPS
    assert set(model["product_flops_per_s"]) == {"float32"}
    assert [each["sources"] for each in model["noise"]] == [2]
    for arm, each in measured.items():
        (run,) = each["runs"]
        assert set(run["phase_s"]) == {*PHASES, REST}
        assert min(run["phase_s"].values()) > 0, arm
        assert sum(run["phase_s"].values()) == pytest.approx(run["wall_s"])
        assert each["edits_per_s"] == pytest.approx(each["edits"] / run["wall_s"])
        assert each["price_per_1000"] == pytest.approx(1 / each["edits_per_s"])
        assert 0 < each["utilisation_algorithmic"] <= each["utilisation_executed"]
    assert [measured[arm]["edits"] for arm in ARMS] == [1, 1, 2, 4, 4, 4]
    assert measured["D"]["flops"] < measured["B+"]["flops"] < measured["B"]["flops"]
    # Whether maps are explicit or not; B encodes one text more.
    assert measured["A"]["flops"] == pytest.approx(measured["B"]["flops"], rel=0.02)


def test_the_compiled_arm_agrees_and_is_seen() -> None:
    """ "eager" is torch's backend that traces the graphs and compiles nothing; one step has all of
    them."""
    checkpoint = build_random("micro", SHAPES["micro"], torch.device("cpu"))
    parameters = EditParameters(
        steps=1, replaced_fraction=1.0, layers=LAYERS, width_px=64, height_px=64
    )
    work = make_workload(1, 1, parameters)
    authors, *_, eager, traced = exact_arms(checkpoint, checkpoint, "eager")
    assert (eager.name, traced.name, traced.is_compiled) == ("D", "E", True)
    clocks = [PhaseClock(checkpoint.device) for _ in range(2)]
    torch._dynamo.reset()  # what another test had traced would not be traced again
    graphs_before = counters["stats"]["unique_graphs"]
    with clocks[0].watching(traced.networks):
        latents = traced.edit(work, clocks[0])
    with clocks[1].watching(eager.networks):
        eager.edit(work, clocks[1])
    assert farthest(latents, authors.edit(work, PhaseClock(checkpoint.device))) <= TOLERANCE
    assert clocks[0].rows == clocks[1].rows > 0
    assert clocks[0].seconds()["edit"] > 0
    assert counters["stats"]["unique_graphs"] > graphs_before, "nothing was traced"


def test_tables_and_plot(printed: str, folder: pathlib.Path) -> None:
    for word in ("micro: speed", "per 1,000", "D again", "noise", "CPU threads"):
        assert word in printed
    assert "Aims" not in printed, "there are none for this model"
    with Image.open(folder / "speed.png") as image:
        image.load()
        assert image.width > 500


def test_an_arm_that_is_too_far_away_stops_the_command(tmp_path: pathlib.Path) -> None:
    new = tmp_path / "new"
    code, out, _ = bench(new, "--compiler", "none", "--tolerance", "1e-9")
    assert code == STOPPED
    assert "NOT OK" in out
    assert "nothing was timed" in out
    assert "edits/s" not in out
    assert not new.exists()


@pytest.mark.parametrize(
    ("distance", "is_control", "ok"),
    [(0.5, False, True), (2.0, False, False), (2.0, True, True), (0.5, True, False)],
)
def test_a_mistake_has_to_be_seen(distance: float, is_control: bool, ok: bool) -> None:
    assert Comparison("x", "x", distance, 1.0, is_control).ok is ok
    assert not Comparison("x", "x", float("nan"), 1.0, is_control).ok


def test_one_bad_edit_is_enough() -> None:
    expected = torch.ones(3, 4, 2, 2)
    latents = expected.clone()
    latents[1] *= 1.5
    assert farthest(latents, expected) == pytest.approx(0.5)
    latents[2, 0, 0, 0] = float("nan")
    assert not farthest(latents, expected) <= 1.0


def test_the_gate_knows_v_prediction() -> None:
    shape = dataclasses.replace(SHAPES["micro"], prediction_type="v_prediction")
    checkpoint = build_random("v", shape, torch.device("cpu"))
    parameters = EditParameters(steps=STEPS, layers=LAYERS, width_px=64, height_px=64)
    arms = exact_arms(checkpoint, checkpoint, "none")
    found = pass_gate(arms, make_workload(1, 1, parameters))
    assert [each for each in found if not each.ok] == []


def test_the_minimal_procedure_of_stable_diffusion_1_5() -> None:
    """803 GFLOP a row; 0.139, 0.092 and 0.080 PFLOP an edit for 1, 4 and 16 of a source."""
    from diffusers import UNet2DConditionModel

    shape = SHAPES["sd15"]
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, **shape.unet)
    tokenizer = SimpleNamespace(model_max_length=77)
    empty = SimpleNamespace(unet=unet, tokenizer=tokenizer, latent_channels=4, vae_factor=8)
    row = count_row(empty, make_workload(1, 1, EditParameters(layers=LAYERS)))  # type: ignore[arg-type]
    assert round((row.row + row.time + row.text) / 1e9) == 803
    for edits, expected in ((1, 0.139), (4, 0.092), (16, 0.080)):
        assert round(minimal_flops(row, 50, 40, edits) / edits / 1e15, 3) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sources", "0"], "--sources must be whole numbers from 1"),
        (["--edits", "1,x"], "--edits must be whole numbers from 1"),
        (["--steps", "2"], "greater than or equal to 3"),
        (["--size", "60"], "width_px must be a multiple of 8"),
        (["--compiler", "gcc"], "torch.compile has no backend 'gcc'; allowed: aot_eager"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_mistakes_are_said_before_anything_is_computed(
    arguments: list[str], message: str, tmp_path: pathlib.Path
) -> None:
    fixed = ("--device", "cpu", "--preset", "micro", "--out", str(tmp_path / "new"))
    code, _, err = fpe("bench", "speed", *fixed, *arguments)
    assert code == USAGE
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "new").exists()


def test_aims_are_held_against_the_fastest_of_our_arms() -> None:
    def arm(name: str, wall_s: float) -> Measured:
        run = Run(wall_s, {}, 1, None)
        return Measured(name, "", "float32", 1, 1, 2, (run, run, run), 1.0, 1.0, 0.0)

    cell = [arm("A", 12.0), arm("B", 4.0), arm("C", 2.0), arm("D", 1.0)]
    assert Target("m", 1, "A", 6.0).reached(cell) == pytest.approx(12.0)
    assert Target("m", 1, "B", 6.0).reached(cell) == pytest.approx(4.0)
    assert Target("m", 1, "", 6.0).reached(cell) == pytest.approx(7200.0)
    assert {target.model for target in PRESETS["cpu"].targets} == {"cpu-512"}

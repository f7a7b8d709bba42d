"""`fpe bench speed --authors`: arm A by code that is not ours, held to the same gate."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from fpe_core import EditParameters, ParameterError
from jobs.bench.speed.arms import exact_arms
from jobs.bench.speed.authors_checkout import LAYERS, CheckoutArm, load_code
from jobs.bench.speed.gate import TOLERANCE, farthest, pass_gate
from jobs.bench.speed.instruments import PhaseClock
from jobs.bench.speed.models import SHAPES, build_random
from jobs.bench.speed.workload import make_workload
from jobs.cli import app
from jobs.terminal.exits import OK, USAGE

STAND_IN = pathlib.Path(__file__).parent / "authors_stand_in"
STEPS = 3


@pytest.fixture(autouse=True)
def fresh_import() -> Iterator[None]:
    """Another test's `Freeprompt` is not this one's."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "Freeprompt"]:
        del sys.modules[name]


def test_their_code_is_gated_as_any_arm() -> None:
    checkpoint = build_random("micro", SHAPES["micro"], torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in checkpoint.unet.state_dict().items()}
    arms = exact_arms(checkpoint, checkpoint, load_code(STAND_IN))
    assert isinstance(arms[0], CheckoutArm)
    parameters = EditParameters(steps=STEPS, layers=LAYERS, width_px=64, height_px=64)
    work = make_workload(2, 2, parameters).without_source_prompts()
    found = pass_gate(arms, work)
    wrong = [each for each in found if not each.ok]
    assert [each.name for each in wrong] == []

    clock = PhaseClock(checkpoint.device)
    with clock.watching(arms[0].networks):
        again = arms[0].edit(work.cut(1, 1), clock)
    assert clock.rows == 6 * STEPS, "two rows a step of inversion, four of the edit"
    assert min(clock.seconds().values()) > 0
    assert farthest(again, arms[3].edit(work.cut(1, 1), clock)) <= TOLERANCE
    # Their registration is on a UNet of its own, whose weights are ours.
    theirs = arms[0].pipeline.unet
    assert theirs is not checkpoint.unet
    assert not [m for m in checkpoint.unet.modules() if "forward" in vars(m)]
    for own, shared in zip(checkpoint.unet.parameters(), theirs.parameters(), strict=True):
        assert own is shared
    for name, tensor in checkpoint.unet.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_command_runs_it(tmp_path: pathlib.Path) -> None:
    small = ("--preset", "micro", "--rounds", "1", "--sources", "1", "--edits", "2")
    where = ("--device", "cpu", "--out", str(tmp_path), "--no-profile")
    code, out, err = fpe("bench", "speed", *small, *where, "--authors", str(STAND_IN))
    assert code == OK, err
    assert "A: the authors' own code" in out
    report = json.loads((tmp_path / "speed.json").read_text())
    (model,) = report["models"]
    measured = {each["arm"]: each for each in model["measured"]}
    assert measured["A"]["unet_rows_per_edit"] == 6 * STEPS
    assert 0 < measured["D"]["from_authors"] <= TOLERANCE
    assert report["settings"]["authors"] == str(STAND_IN)
    assert model["parameters"]["layers"] == {"max_tokens": 1024}


def fpe(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"TERM": "dumb"})
    return result.exit_code, result.stdout, result.stderr


def test_a_folder_that_is_no_checkout(tmp_path: pathlib.Path) -> None:
    new = tmp_path / "new"
    arguments = ("--preset", "micro", "--device", "cpu", "--out", str(new))
    code, _, err = fpe("bench", "speed", *arguments, "--authors", str(tmp_path))
    assert code == USAGE
    said = " ".join(err.split())
    assert (
        "has no Freeprompt/diffuser_utils.py; give the folder diffusion/FreePromptEditing" in said
    )
    assert not new.exists()


def test_a_package_that_their_code_needs_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "Freeprompt").mkdir()
    (tmp_path / "Freeprompt" / "diffuser_utils.py").write_text("import einops_of_another_name\n")
    with pytest.raises(ParameterError, match=r"No module named 'einops_of_another_name'.*einops"):
        load_code(tmp_path)
    assert str(tmp_path) not in sys.path


def test_models_that_their_code_cannot_run() -> None:
    code = load_code(STAND_IN)
    shape = replace(SHAPES["micro"], prediction_type="v_prediction")
    with pytest.raises(ParameterError, match="predicts v_prediction; the authors' code reads"):
        CheckoutArm.of(build_random("v", shape, torch.device("cpu")), code)
    shape = replace(SHAPES["micro"], vae={**SHAPES["micro"].vae, "scaling_factor": 0.5})
    with pytest.raises(ParameterError, match=r"scales its latents by 0\.5; the authors' code by"):
        CheckoutArm.of(build_random("v", shape, torch.device("cpu")), code)


def test_a_cpu_beside_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = build_random("micro", SHAPES["micro"], torch.device("cpu"))
    code = load_code(STAND_IN)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ParameterError, match="takes CUDA where there is one: --device cuda"):
        CheckoutArm.of(checkpoint, code)

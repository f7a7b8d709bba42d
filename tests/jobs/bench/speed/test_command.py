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
from typer.testing import CliRunner

from fpe_core import Editor, EditParameters
from jobs.bench.speed.arms import OURS, exact_arms
from jobs.bench.speed.device_time import KINDS, kind_of
from jobs.bench.speed.flops import count_row, minimal_flops
from jobs.bench.speed.gate import (
    CONTROLS,
    TOLERANCE,
    GateComparison,
    farthest,
    pass_gate,
    tolerance_of,
)
from jobs.bench.speed.instruments import NETWORK_PHASES
from jobs.bench.speed.models import LAYERS, SHAPES, build_random
from jobs.bench.speed.results import REST
from jobs.bench.speed.rounds import CellTimer, CellTimes
from jobs.bench.speed.sweep import GATE_STEPS, parameters_in_the_gate
from jobs.bench.speed.workload import BenchWorkload, make_workload
from jobs.cli import app
from jobs.terminal.exits import INTERRUPTED, OK, STOPPED, USAGE
from tests.jobs.bench.speed.test_results import settings_of

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
    """What the command prints."""
    code, out, err = bench(folder, "--price-per-hour", "3.6", "--gate-size", "32")
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
        assert set(run["phase_s"]) == {*NETWORK_PHASES, REST}
        assert min(run["phase_s"].values()) > 0, arm
        assert sum(run["phase_s"].values()) == pytest.approx(run["wall_s"])
        assert each["edits_per_s"] == pytest.approx(each["edits"] / run["wall_s"])
        assert each["price_per_1000"] == pytest.approx(1 / each["edits_per_s"])
        assert 0 < each["utilisation_algorithmic"] <= each["utilisation_executed"]
        assert each["peak_bytes"] > 0
        assert each["timed_in"] == ""
    assert [measured[arm]["edits"] for arm in ARMS] == [1, 1, 2, 4, 4, 4]
    assert measured["D"]["flops"] < measured["B+"]["flops"] < measured["B"]["flops"]
    # Whether maps are explicit or not; B encodes one text more.
    assert measured["A"]["flops"] == pytest.approx(measured["B"]["flops"], rel=0.02)


def test_every_arm_of_a_cell_is_compared(measured: dict[str, dict[str, Any]]) -> None:
    assert measured["A"]["from_authors"] == measured["C"]["from_ours"] == 0
    assert measured["A"]["from_ours"] is None
    for arm in ARMS[1:]:
        assert 0 < measured[arm]["from_authors"] <= TOLERANCE
        assert measured[arm]["from_ours"] <= TOLERANCE


def test_the_profile_accounts_for_all_of_the_time(
    report: dict[str, Any], printed: str, measured: dict[str, dict[str, Any]]
) -> None:
    (profile,) = report["models"][0]["profiles"]
    assert profile["arm"] == max(OURS, key=lambda arm: measured[arm]["edits_per_s"])
    assert tuple(profile["share"]) == KINDS
    assert sum(profile["share"].values()) == pytest.approx(1)
    assert min(profile["share"].values()) > 0
    assert 0 < sum(profile["longest"].values()) < 1
    assert "the device's time, our fastest arm" in printed


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize64x64", "conv"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_bias_TNN", "matrix"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x128_nn_align4>", "matrix"),
        ("aten::addmm", "matrix"),
        ("mkldnn::_linear_pointwise", "matrix"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float>", "norm"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>", "elem"),
        ("Memcpy DtoH (Device -> Pageable)", "copy"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float>", "copy"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<float, float>", "copy"),
        ("aten::copy_", "copy"),
        ("aten::as_strided", "idle"),
    ],
)
def test_kinds_of_operations(name: str, kind: str) -> None:
    assert kind_of(name) in KINDS
    assert kind_of(name).startswith(kind)


def test_tables_and_plot(printed: str, folder: pathlib.Path) -> None:
    for word in ("micro: speed", "per 1,000", "from C", "D again", "noise", "CPU threads"):
        assert word in printed
    assert "aim " not in printed, "there are none for this model"
    with Image.open(folder / "speed.png") as image:
        image.load()
        assert image.width > 500


def test_an_arm_that_is_too_far_away_stops_the_command(tmp_path: pathlib.Path) -> None:
    new = tmp_path / "new"
    code, out, _ = bench(new, "--tolerance", "1e-9")
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
    assert GateComparison("x", "x", distance, 1.0, is_control).ok is ok
    assert not GateComparison("x", "x", float("nan"), 1.0, is_control).ok


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
    arms = exact_arms(checkpoint, checkpoint)
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
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--arms", "A,Z"], "--arms knows A, B, B+, C, D; got 'Z'"),
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


def test_only_the_arms_that_are_asked_for_are_measured(tmp_path: pathlib.Path) -> None:
    code, _, err = bench(tmp_path, "--arms", "D,B", "--edits", "1", "--sources", "1")
    assert code == OK, err
    (model,) = json.loads((tmp_path / "speed.json").read_text())["models"]
    assert {each["arm"] for each in model["measured"]} == {"A", "B", "D", "D again"}
    assert {each["name"] for each in model["gate"]} == {"B", "D", *CONTROLS}


def test_the_gate_has_few_steps_whatever_is_timed() -> None:
    """Where there are fifty, the trajectory one step off is nearer than it has to be."""
    settings = settings_of(steps=50, gate_size_px=256)
    timed = EditParameters(steps=50, width_px=512, height_px=512)
    in_gate = parameters_in_the_gate(timed, settings)
    assert (in_gate.steps, in_gate.width_px, in_gate.height_px) == (GATE_STEPS, 256, 256)
    assert in_gate.replaced_steps >= 2
    few = dataclasses.replace(timed, steps=STEPS)
    assert parameters_in_the_gate(few, settings_of()).steps == STEPS


@pytest.mark.endurance
@pytest.mark.soak
def test_a_run_goes_on_where_it_was_stopped(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is interrupted in its second cell; what it had written is not measured again."""
    few = ("--preset", "micro", "--rounds", "1", "--sources", "1")
    where = ("--device", "cpu", "--no-profile", "--out", str(tmp_path))
    whole = CellTimer.time_cell
    timed: list[int] = []

    def interrupted(self: CellTimer, workload: BenchWorkload) -> CellTimes:
        timed.append(workload.edits)
        if len(timed) == 2:
            raise KeyboardInterrupt
        return whole(self, workload)

    monkeypatch.setattr(CellTimer, "time_cell", interrupted)
    code, _, err = fpe("bench", "speed", *few, *where, "--edits", "1,2")
    assert code == INTERRUPTED, err
    first = json.loads((tmp_path / "speed.json").read_text())["models"][0]
    assert first["cells"] == [[1, 1]]
    assert (tmp_path / "speed.png").exists()

    code, out, err = fpe("bench", "speed", *few, *where, "--edits", "1,2", "--resume")
    assert code == OK, err
    assert timed == [1, 2, 2], "the first cell was measured once"
    model = json.loads((tmp_path / "speed.json").read_text())["models"][0]
    assert model["cells"] == [[1, 1], [1, 2]]
    assert model["measured"][: len(first["measured"])] == first["measured"]
    assert "1 x 2" in out
    assert not list(tmp_path.glob("speed-*.json")), "the same file goes on"

    code, _, err = fpe("bench", "speed", *few, *where, "--edits", "1,2", "--resume")
    assert code == OK, err
    assert len(timed) == 3, "nothing was left to measure"


def test_the_built_in_model_has_a_tolerance_of_its_own() -> None:
    """Its mistakes are nearer to A than a random model's."""
    assert tolerance_of("still-life") < tolerance_of("sd15") == TOLERANCE

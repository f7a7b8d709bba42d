"""The `fpe` command as it is typed."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.storage.folder import Folder
from tests.builders.finished_run import accept_images
from tests.servers.forked_workers import FPE

ROOT = pathlib.Path(__file__).parent.parent.parent


def fpe(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fpe` with these arguments."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    return result.exit_code, result.stdout, result.stderr


def figures(table: str) -> Mapping[str, str]:
    """The rows of a printed table of names and figures."""
    rows = [line.split("  ") for line in table.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return {row[0]: row[1] for row in cells if len(row) == 2}


@pytest.fixture
def job_file(
    tmp_path: pathlib.Path, tiny_checkpoint: pathlib.Path, picture: Callable[..., Image.Image]
) -> pathlib.Path:
    """A job of three pictures with two edits each, for a random checkpoint."""
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    table = pa.table(
        {
            "image": [f"{number}.png" for number in range(3)],
            "shape": ["cat", "dog", "car"],
            "target_prompt": [["a red cat", "a blue cat"]] * 3,
        }
    )
    pq.write_table(table, tmp_path / "manifest.parquet")
    file = tmp_path / "job.yaml"
    job = {
        "manifest": str(tmp_path / "manifest.parquet"),
        "output": str(tmp_path / "run"),
        "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
    }
    file.write_text(yaml.safe_dump(job), encoding="utf-8")
    return file


def test_the_entry_point_is_the_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"fpe": "fpe:main"}
    shown = [
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.argv = ['fpe', '--help']; {code}"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
        for code in ("import fpe; fpe.main()", "import jobs.cli; jobs.cli.main()")
    ]
    assert shown[0] == shown[1] != ""


def help_without_slow_modules(*words: str) -> str:
    """What `fpe WORDS --help` prints, in a process that must not import torch, Ray or pyarrow."""
    code = (
        "import sys, jobs.cli\n"
        f"sys.argv = ['fpe', *{words!r}, '--help']\n"
        "try:\n    jobs.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'ray', 'pyarrow'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("words", [("run",), ("plan",), ("bench",), ("bench", "speed")])
def test_help_of_commands_answers_at_once(words: tuple[str, ...]) -> None:
    assert " ".join(("fpe", *words)) in help_without_slow_modules(*words)


def test_help_answers_without_torch_and_ray() -> None:
    """Two seconds of imports are not for somebody who asks for help."""
    printed = help_without_slow_modules()
    for command in (
        "run",
        "submit",
        "retry",
        "plan",
        "status",
        "verify",
        "sheet",
        "report",
        "config",
        "demo",
    ):
        assert command in printed
    assert "Exit codes" in printed


def test_config_show_prints_defaults() -> None:
    code, printed, _ = fpe("config", "show")
    assert code == 0
    assert yaml.safe_load(printed)["failures"]["max_in_a_row"] == 100


def test_config_show_prints_a_job_with_overrides(job_file: pathlib.Path) -> None:
    code, printed, _ = fpe("config", "show", str(job_file), "edit.steps=7")
    assert code == 0
    assert yaml.safe_load(printed)["edit"]["steps"] == 7


def test_plan_counts_and_writes_nothing(job_file: pathlib.Path) -> None:
    code, printed, errors = fpe("plan", "--no-probe", str(job_file), "edit.steps=10")
    assert (code, errors) == (0, "")
    row = figures(printed)
    assert (row["edits"], row["already done"], row["to do"], row["sources"]) == ("6", "0", "6", "3")
    # ten steps of inversion, five with the source's maps, twice ten for each of two edits, which
    # share the first unconditional row
    assert row["UNet rows to do"] == str(3 * (10 + 5 + 1 + 2 * (20 - 1)))
    assert not (job_file.parent / "run").exists()


def test_plan_says_that_edits_are_approximate(job_file: pathlib.Path) -> None:
    _, printed, _ = fpe("plan", str(job_file))
    assert "approximation" not in figures(printed)
    _, printed, _ = fpe("plan", str(job_file), "edit.speed=fast", "edit.steps=3")
    assert figures(printed)["approximation"].startswith("fast: 3 steps, ")
    _, printed, _ = fpe("plan", str(job_file), "edit.guidance_interval=[0, 0.5]")
    row = figures(printed)
    assert row["approximation"] == "4 steps, guided from 0 to 0.5 of them"
    assert row["UNet rows to do"] == str(3 * (4 + 2 + 1 + 2 * (4 + 2 - 1)))


def test_plan_expands_labels(job_file: pathlib.Path) -> None:
    code, printed, _ = fpe(
        "plan",
        "--no-probe",
        str(job_file),
        "prompts.target=a {colour} {shape} {where}",
        "prompts.labels={colour: [red, blue, green], where: [in snow, at night]}",
    )
    assert code == 0
    assert figures(printed)["edits"] == "18"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["edit.steps=0"], "error: override 'edit.steps=0': edit.steps: must be >= 1 (got 0)"),
        (["edit.stepz=1"], "error: override 'edit.stepz=1': edit.stepz: unknown key; did you mean"),
        (["model.checkpoint=nowhere/at-all/x"], "error: model.checkpoint: "),
        (["manifest=nowhere.parquet"], "error: "),
        (["prompts.target=a {colour} hat"], "error: "),
    ],
)
def test_mistakes_are_told_and_exit_with_2(
    job_file: pathlib.Path, arguments: list[str], expected: str
) -> None:
    code, printed, errors = fpe("plan", "--no-probe", str(job_file), *arguments)
    assert code == 2, errors
    assert printed == ""
    assert errors.startswith(expected)
    assert "Traceback" not in errors


def test_a_bad_manifest_is_told_with_row_numbers(job_file: pathlib.Path) -> None:
    table = pa.table({"image": ["0.png", None, "2.png"], "target_prompt": ["a", "b", " "]})
    pq.write_table(table, job_file.parent / "manifest.parquet")
    code, _, errors = fpe("plan", str(job_file))
    assert code == 2
    assert "row 1" in errors
    assert "row 2" in errors


@pytest.mark.parametrize(
    "arguments", [["rum"], ["run"], ["plan", "--fast", "x.yaml"], ["config", "shew"]]
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    code, printed, errors = fpe(*arguments)
    assert (code, printed) == (2, "")
    assert "Usage: " in errors


def test_a_missing_job_file_exits_with_2(tmp_path: pathlib.Path) -> None:
    for command in ("run", "plan", "verify"):
        code, _, errors = fpe(command, str(tmp_path / "nothing.yaml"))
        assert code == 2
        assert "there is no such job file" in errors


def test_a_sheet_of_nothing_says_so(tmp_path: pathlib.Path) -> None:
    code, _, errors = fpe("sheet", str(tmp_path))
    assert code == 1
    assert "is this the run folder of a job?" in errors


@pytest.fixture
def small_job(job_file: pathlib.Path, ray_cluster: None) -> pathlib.Path:
    """The job, on the Ray that all tests share."""
    return job_file


def test_run_then_run_again_then_verify(small_job: pathlib.Path) -> None:
    output = str(small_job.parent / "run")
    code, printed, errors = fpe("run", str(small_job), "images.format=webp")
    assert code == 0, errors
    row = figures(printed)
    assert (row["edits planned"], row["already done"], row["accepted"]) == ("6", "0", "6")
    # four steps recommended, two of them replaced, two edits: (4 + 2 + 1 + 2 * (2 * 4 - 1)) / 2
    assert row["UNet rows per edit"] == "10.5"
    assert float(row["edits/s"]) > 0

    written = sorted(small_job.parent.glob("run/part-*/edited/*.webp"))
    before = [path.stat().st_mtime_ns for path in written]
    code, printed, _ = fpe("run", str(small_job), "images.format=webp")
    assert code == 0
    assert "All 6 edits are done already; nothing was computed." in printed
    assert [path.stat().st_mtime_ns for path in written] == before
    assert len(written) == 6

    for target in (output, str(small_job)):
        code, printed, _ = fpe("verify", target)
        assert code == 0, printed
        row = figures(printed)
        assert (row["edits planned"], row["accepted"], row["pending"]) == ("6", "6", "0")
        assert row["images decoded"] == "9"
        assert "The run is in order." in printed
        code, printed, _ = fpe("status", target)
        assert code == 0
        assert figures(printed)["to do, by the latest plan"] == "0"

    code, printed, errors = fpe("verify", output, "--recompute", "4", "--device", "cpu")
    assert code == 0, printed + errors
    row = figures(printed)
    assert row["edits compared"] == "4"
    assert int(row["equal bit for bit"]) + int(row["equal within tolerance"]) == 4
    assert (row["different"], row["could not be recomputed"]) == ("0", "0")
    assert "Recomputed on cpu in float32" in printed

    code, printed, _ = fpe("sheet", output)
    assert code == 0
    with Image.open(printed.strip()) as sheet:
        assert sheet.width > 3 * 200

    code, printed, _ = fpe(
        "plan", "--no-probe", str(small_job), "images.format=webp", "edit.steps=2"
    )
    assert figures(printed)["to do"] == "6", "other parameters are other edits"

    kept = written[0].read_bytes()
    Image.new("RGB", (64, 64)).save(written[0])
    code, printed, _ = fpe("verify", output)
    assert code == 1
    assert "is not the image that was written there" in " ".join(printed.split())
    part = written[0].parent.parent.name
    metadata = written[0].parent.parent / "metadata.parquet"
    kept_metadata = metadata.read_bytes()
    accept_images(Folder.open(output), part)
    code, printed, _ = fpe("verify", output, "--recompute", "20")
    assert code == 1
    row = figures(printed)
    assert (row["edits compared"], row["different"], row["problems"]) == ("6", "1", "0")
    (line,) = (line for line in printed.splitlines() if written[0].name in line)
    assert line.startswith("edit ")
    assert "levels apart" in line
    assert "The run is not in order." in printed
    written[0].write_bytes(kept)
    metadata.write_bytes(kept_metadata)
    (small_job.parent / "0.png").unlink()
    code, printed, _ = fpe("verify", output, "--recompute", "20")
    assert code == 0, "what cannot be made again is no difference"
    row = figures(printed)
    assert (row["edits compared"], row["could not be recomputed"]) == ("4", "2")
    assert printed.count("could not be made again: source_missing: ") == 2

    written[0].unlink()
    written[1].write_bytes(b"no picture")
    code, printed, _ = fpe("verify", output)
    assert code == 1
    assert figures(printed)["problems"] == "2"
    assert written[0].name in printed
    assert "The run is not in order." in printed


def test_what_cannot_be_made_again_is_told(
    job_file: pathlib.Path,
) -> None:
    code, printed, _ = fpe("verify", str(job_file), "--recompute", "5")
    assert code == 0
    assert "Nothing could be compared." in printed
    for arguments in (["--recompute", "0"], ["--recompute", "some"]):
        assert fpe("verify", str(job_file), *arguments)[0] == 2
    code, _, errors = fpe("verify", str(job_file), "--recompute", "5", "--device", "cuda:99")
    assert code == 2
    assert "torch sees no device 'cuda:99' on this machine" in errors


def test_a_bad_picture_costs_its_row_and_not_the_exit_code(small_job: pathlib.Path) -> None:
    (small_job.parent / "1.png").write_bytes(b"no picture")
    (small_job.parent / "2.png").unlink()
    code, printed, errors = fpe("run", str(small_job))
    assert code == 0, errors
    row = figures(printed)
    assert (row["accepted"], row["failed"]) == ("2", "4")
    assert (row["decode_failed"], row["source_missing"]) == ("2", "2")
    code, printed, _ = fpe("verify", str(small_job))
    assert code == 0
    assert figures(printed)["failed"] == "4"

    output = str(small_job.parent / "run")
    code, printed, errors = fpe("retry", output, "--only", "nan_latent", "--only", "write_failed")
    assert code == 0, errors
    assert "No edit of this job has failed as nan_latent or write_failed: nothing to" in printed
    code, _, errors = fpe("retry", output, "--only", "bad_luck")
    assert code == 2
    assert "--only bad_luck: not a failure code; known are source_missing, " in errors

    (small_job.parent / "0.png").rename(small_job.parent / "2.png")
    code, printed, errors = fpe("retry", output, "--only", "source_missing")
    assert code == 0, errors
    row = figures(printed)
    assert (row["edits planned"], row["accepted"], row["failed"]) == ("6", "2", "0")
    code, printed, _ = fpe("verify", output)
    assert code == 0, printed
    row = figures(printed)
    assert (row["accepted"], row["failed"]) == ("4", "2")
    assert figures(fpe("status", output)[1])["decode_failed"] == "2"


def test_too_many_failures_stop_the_job(small_job: pathlib.Path) -> None:
    for number in range(3):
        (small_job.parent / f"{number}.png").unlink()
    code, printed, errors = fpe("run", str(small_job), "failures.max_in_a_row=3")
    assert (code, printed) == (1, "")
    assert "failures.max_in_a_row" in errors
    assert "source_missing" in errors
    assert "Traceback" not in errors


def test_actors_that_do_not_fit_are_refused(small_job: pathlib.Path) -> None:
    code, _, errors = fpe("run", str(small_job), "resources.actors=100")
    assert code == 1
    assert "100 actors need 100 CPUs" in errors


def test_demo_leaves_a_sheet_and_names_it_last(tmp_path: pathlib.Path, ray_cluster: None) -> None:
    code, printed, errors = fpe("demo", "--folder", str(tmp_path), "--scenes", "1")
    assert code == 0, errors
    assert figures(printed)["accepted"] == "5"
    last = printed.rstrip().splitlines()[-1]
    assert last == f"Contact sheet: {tmp_path}/demo/contact_sheet.png"
    assert f"Report: {tmp_path}/demo/report.html" in printed.splitlines()
    assert (tmp_path / "demo" / "report.html").stat().st_size > 20_000
    drawn = (tmp_path / "demo" / "contact_sheet.png").stat().st_mtime_ns
    code, printed, _ = fpe("demo", "--folder", str(tmp_path), "--scenes", "1")
    assert code == 0
    assert "All 5 edits are done already; nothing was computed." in printed
    assert (tmp_path / "demo" / "contact_sheet.png").stat().st_mtime_ns == drawn


def test_a_run_that_is_killed_blocks_nobody_and_a_running_one_does(
    small_job: pathlib.Path,
) -> None:
    """Two runs on one folder: the second is refused while the first lives, and then goes on."""
    running = subprocess.Popen(
        [*FPE, "run", str(small_job)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    for line in running.stderr:
        if "starting the workers" in line:
            break
    code, printed, errors = fpe("run", str(small_job))
    assert (code, printed) == (75, "")
    assert f"is in use by another run: process {running.pid} on" in errors
    assert "Traceback" not in errors
    code, printed, _ = fpe("status", str(small_job))
    assert code == 0
    assert f"process {running.pid} on" in figures(printed)["in use by"]
    assert fpe("verify", str(small_job))[0] == 0
    running.kill()
    running.communicate()
    code, printed, errors = fpe("run", str(small_job))
    assert code == 0, errors
    row = figures(printed)
    assert int(row["already done"]) + int(row["accepted"]) == 6
    code, printed, _ = fpe("verify", str(small_job))
    assert code == 0, printed
    assert figures(printed)["accepted"] == "6"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_order(
    job_file: pathlib.Path, number: signal.Signals, fork_server: None
) -> None:
    """The process of its own that a person or a scheduler starts, with a Ray of its own."""
    running = subprocess.Popen(
        [*FPE, "run", str(job_file)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stderr is not None
    for line in running.stderr:
        if "starting the workers" in line:
            break
    running.send_signal(number)
    printed, errors = running.communicate()
    assert running.returncode == 128 + number, errors
    assert "stopped: " in errors
    assert "the same command goes on" in errors.lower()
    assert "Traceback" not in printed + errors
    assert fpe("verify", str(job_file))[0] == 0
    assert "in use by" not in fpe("status", str(job_file))[1], "the lease was given back"

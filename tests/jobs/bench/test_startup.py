"""`fpe bench startup`: two installations in turns, every phase of a run seen from outside."""

from __future__ import annotations

import json
import pathlib
import shlex
import sys

import pytest
from typer.testing import CliRunner

import jobs
from jobs.bench.startup_rounds import Installation
from jobs.cli import app
from jobs.terminal.exits import OK, STOPPED

ROOT = pathlib.Path(jobs.__file__).parent.parent


def bench(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", "startup", *arguments], env={"COLUMNS": "100"})
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.endurance
@pytest.mark.soak
def test_the_phases_of_both_come_one_after_the_other(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = f"env PYTHONPATH={ROOT} {shlex.quote(sys.executable)} -m jobs"
    where = ("--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "startup.json"))
    code, printed, err = bench("--rounds", "1", "--against", other, *where)
    assert code == OK, err
    report = json.loads((tmp_path / "startup.json").read_text())
    assert list(report["runs"]) == ["here", "against"]
    for (run,) in report["runs"].values():
        phases = [run[f"{name}_s"] for name in ("asked", "loaded", "committed", "end")]
        assert phases == sorted(phases)
        assert 0 < run["ray_s"] < run["worker_s"] < run["loaded_s"]
        assert 0 < run["again_s"] < run["committed_s"]
        assert 0 < run["again_cpu_s"] < run["cpu_s"]
    assert report["imports"]["an editing worker"]["torch"] > 0
    assert "torch" not in report["imports"]["a run that finds nothing to do"]
    assert report["ray"]["start"] > 0
    for word in ("first edit committed", "against", "Ray alone", "Imports of an editing worker"):
        assert word in printed


def test_a_run_that_fails_is_not_measured(tmp_path: pathlib.Path) -> None:
    code, printed, err = bench("--rounds", "1", "--checkpoint", str(tmp_path / "nowhere"))
    assert code == STOPPED
    assert "nowhere" in err
    assert "first edit committed" not in printed


def test_another_installation_is_its_python_or_a_command_line() -> None:
    assert Installation.of(sys.executable).arguments == (sys.executable, "-m", "jobs")
    assert Installation.of("env A=1 fpe").arguments[-2:] == ("A=1", "fpe")
    code, _, err = bench("--against", "no-such-program --help")
    assert code == STOPPED
    assert "there is no such program" in err

"""`fpe bench threads`: how cores are shared out, and what is printed and written of it."""

from __future__ import annotations

import json
import pathlib

import pytest
from typer.testing import CliRunner

from jobs.bench.threads import SplitSpeed, splits_of
from jobs.cli import app
from jobs.terminal.exits import OK


@pytest.mark.parametrize("cores", [1, 2, 6, 7, 16])
def test_every_split_uses_all_cores(cores: int) -> None:
    splits = splits_of(cores)
    assert {processes * threads for processes, threads in splits} == {cores}
    assert splits[0] == (1, cores)
    assert splits[-1] == (cores, 1)
    assert len(set(splits)) == len(splits)


def test_speed_is_of_all_processes_together() -> None:
    speed = SplitSpeed(processes=2, threads=1, edits=8, wall_s=(4.0, 2.0, 1.0))
    assert speed.edits_per_s == 4.0
    assert speed.spread == 1.5


def test_processes_edit_and_are_counted(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """One core: a second process would load torch once more, and show nothing else."""
    few = ("--cores", "1", "--scenes", "1", "--steps", "1", "--rounds", "2")
    where = ("--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path))
    result = CliRunner().invoke(app, ["bench", "threads", *few, *where], env={"COLUMNS": "80"})
    assert result.exit_code == OK, result.output
    assert "threads each" in result.stdout
    report = json.loads((tmp_path / "threads.json").read_text())
    (split,) = report["splits"]
    assert (report["cores"], split["processes"], split["threads"], split["edits"]) == (1, 1, 1, 2)
    assert len(split["wall_s"]) == 2
    assert min(split["wall_s"]) > 0

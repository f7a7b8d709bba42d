"""`fpe run --skip-if-in-use`: a living run is left alone, a dead one is followed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.terminal.exits import IN_USE
from pipeline.ledger.lease import LEASE_FOLDER, hold_lease, lease_state, take_lease
from pipeline.storage.folder import Folder

TIMES = {"expiry_s": 0.3, "heartbeat_s": 0.05}


@pytest.fixture
def job_file(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A job with nothing to do: its run takes the lease, and no Ray."""
    columns = {"image": pa.array([], pa.string()), "target_prompt": pa.array([], pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    job = {
        "manifest": str(tmp_path / "m.parquet"),
        "output": str(tmp_path / "run"),
        "model": {"checkpoint": str(tiny_checkpoint)},
        "lease": TIMES,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    return tmp_path / "job.yaml"


@pytest.fixture
def folder(job_file: Path) -> Folder:
    return Folder.open(str(job_file.parent / "run"))


def fpe(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, list(arguments))
    return ended.exit_code, ended.output


def test_a_run_that_is_alive_is_left_alone(job_file: Path, folder: Folder) -> None:
    with hold_lease(folder, expiry_s=3600, heartbeat_s=600) as lease:
        assert fpe("run", str(job_file))[0] == IN_USE
        code, said = fpe("run", str(job_file), "--skip-if-in-use")
        assert (code, f"Another run is using {folder.url}: nothing was done." in said) == (0, True)
        state = lease_state(folder)
        assert state is not None
        assert state.token == lease.token


def test_a_run_that_died_on_another_machine_is_waited_out(job_file: Path, folder: Folder) -> None:
    take_lease(folder, expiry_s=TIMES["expiry_s"])
    holder = Path(folder.path_of(f"{LEASE_FOLDER}/holder-00000001.json"))
    holder.write_text(json.dumps(json.loads(holder.read_text()) | {"host": "lost", "machine": ""}))
    code, said = fpe("run", str(job_file), "--skip-if-in-use")
    assert (code, "nothing was done" in said) == (0, False)
    state = lease_state(folder)
    assert state is not None
    assert (state.token, state.is_released) == (2, True)

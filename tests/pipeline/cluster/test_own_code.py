"""Files with the names of our packages and of libraries, of a user's own: a run is as without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.cluster import own_code
from pipeline.ledger.ledger import Ledger
from pipeline.storage.folder import Folder

ROOT = Path(__file__).parent.parent.parent.parent
POISON = "raise SystemExit('a module of my own project was imported')\n"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "0.png")
    pq.write_table(
        pa.table({"image": ["0.png"], "target_prompt": ["a star"]}), tmp_path / "m.parquet"
    )
    file = tmp_path / "job.yaml"
    file.write_text(
        f"manifest: {tmp_path}/m.parquet\noutput: {tmp_path}/out\neditor: none\n", encoding="utf-8"
    )
    return file


def project(folder: Path) -> Path:
    """A folder with a module or package of every name that is imported by a run."""
    folder.mkdir()
    for name in ("pipeline", "random", "fsspec", "stamina"):
        (folder / f"{name}.py").write_text(POISON)
    for name in ("fpe_core", "datasets"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(POISON)
    return folder


def fpe(*command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_started_among_such_files_with_a_long_tmpdir_and_no_home(
    job: Path, tmp_path: Path
) -> None:
    """Failed before: with `fpe` blocks were lost until the run gave up; the others ended as 70."""
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    among = project(tmp_path / "project")
    done = fpe(
        *(str(ROOT / "fpe.py"), "run", str(job)),
        folder=among,
        TMPDIR=str(deep),
        HOME="/dev/null/home",
    )
    assert done.returncode == 0, done.stderr
    assert "RAY_TMPDIR names another folder" in " ".join(done.stderr.split())
    counts = Ledger.open(Folder.open(str(tmp_path / "out"))).counts()
    assert (counts.accepted, counts.failed_by_code) == (1, {})


def test_the_commands_start_among_such_files(job: Path, tmp_path: Path) -> None:
    among = project(tmp_path / "project")
    done = fpe("-m", "jobs", "plan", str(job), folder=among)
    assert done.returncode == 0, done.stderr
    (among / "jobs").mkdir()
    (among / "jobs" / "__init__.py").write_text(POISON)
    for name in ("random", "fsspec", "stamina"):  # on PYTHONPATH they come first for all of Python
        (among / f"{name}.py").unlink()
    (among / "datasets" / "__init__.py").unlink()
    path = os.pathsep.join([str(among), str(ROOT)])
    done = fpe(str(ROOT / "fpe.py"), "plan", str(job), folder=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr


def test_a_package_that_another_distribution_has_overwritten_is_named(tmp_path: Path) -> None:
    """As django-pipeline 4.1.0 does, if it is installed after this program."""
    for name in ("fpe.py", "jobs", "fpe_core"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("__version__ = '4.1.0'\n")
    copied = tmp_path / "jobs"
    copied.unlink()
    copied.mkdir()
    for name in ("__init__.py", "own_packages.py"):
        (copied / name).write_bytes((ROOT / "jobs" / name).read_bytes())
    (tmp_path / "fpe.py").unlink()
    (tmp_path / "fpe.py").write_bytes((ROOT / "fpe.py").read_bytes())
    done = fpe(str(tmp_path / "fpe.py"), "--help", folder=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/pipeline/__init__.py is in the way" in done.stderr


def test_nothing_is_asked_of_ray_where_nothing_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "fpe.py")])
    (tmp_path / "steps_of_my_own.py").touch()
    (tmp_path / "jobs").mkdir()  # a folder of data; workers do not import jobs
    assert own_code.in_the_way() is None
    assert own_code.runtime_env() is None
    (tmp_path / "random.py").touch()
    assert own_code.in_the_way() is None
    assert own_code.runtime_env() is not None
    (tmp_path / "pipeline.py").touch()
    assert own_code.in_the_way() == tmp_path / "pipeline.py"

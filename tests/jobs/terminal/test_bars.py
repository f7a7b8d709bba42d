"""Ray's bars are on terminals, and nowhere else."""

from __future__ import annotations

import contextlib
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console
from rich.live import Live

from pipeline.job.job import LogsSection
from pipeline.logs import LogSettings, stderr_handler
from tests.servers.forked_workers import FPE

ROOT = Path(__file__).parent.parent.parent.parent
EDITS = 6
BAR = "MapBatches(RayEditActor)"


@pytest.fixture
def job_file(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    for number in range(EDITS):
        picture(number).save(tmp_path / f"{number}.png")
    images = [f"{number}.png" for number in range(EDITS)]
    table = pa.table({"image": images, "target_prompt": ["a red cat"] * EDITS})
    pq.write_table(table, tmp_path / "manifest.parquet")
    job = {
        "manifest": str(tmp_path / "manifest.parquet"),
        "output": str(tmp_path / "run"),
        "editor": "none",
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    return tmp_path / "job.yaml"


def read_terminal(terminal: int) -> str:
    """What a program wrote on the other end, to its end."""
    said = b""
    with contextlib.suppress(OSError):  # Linux's way to say that nobody has the other end any more
        while chunk := os.read(terminal, 65536):
            said += chunk
    os.close(terminal)
    return said.decode(errors="replace")


def run_on_terminal(job_file: Path, *, errors: Path | None, command: Sequence[str]) -> str:
    """What a terminal shows of a run whose stderr is there too, or goes to a file."""
    ours, its = pty.openpty()
    with (errors or job_file).open("ab") as sink:
        program = subprocess.Popen(
            [*command, "run", str(job_file)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            stdout=its,
            stderr=sink if errors else its,
        )
    os.close(its)
    said = read_terminal(ours)
    assert program.wait() == 0, said
    return said


def test_a_terminal_has_rays_bars_one_line_and_the_summary(
    job_file: Path, fork_server: None
) -> None:
    said = run_on_terminal(job_file, errors=None, command=FPE)
    assert BAR in said
    assert "_decode_block" in said
    after = said[said.rindex(BAR) :]
    assert after.count(f"{EDITS}/{EDITS} edits, ") == 1
    assert after.index(f"{EDITS}/{EDITS} edits, ") < after.index("edits planned")


def test_errors_in_a_file_have_lines_and_no_bars(job_file: Path, tmp_path: Path) -> None:
    """Of the command as users start it, whose workers load everything themselves."""
    said = run_on_terminal(
        job_file, errors=tmp_path / "errors", command=[sys.executable, "-m", "jobs"]
    )
    errors = (tmp_path / "errors").read_text()
    assert BAR not in said + errors
    assert "edits planned" in said
    assert f"{EDITS}/{EDITS} edits" in errors


@pytest.mark.parametrize(
    ("terminals", "section", "shown"),
    [
        ((True, True), {}, True),
        ((True, True), {"bars": "edits"}, False),
        ((True, True), {"format": "json"}, False),
        ((True, False), {}, False),
        ((False, True), {}, False),
    ],
)
def test_bars_need_both_outputs_and_text(
    monkeypatch: pytest.MonkeyPatch,
    terminals: tuple[bool, bool],
    section: dict[str, str],
    shown: bool,
) -> None:
    for name, is_terminal in zip(("stdout", "stderr"), terminals, strict=True):
        monkeypatch.setattr(
            getattr(sys, name), "isatty", lambda is_terminal=is_terminal: is_terminal
        )
    assert LogsSection.model_validate(section).shows_ray_bars == shown


def test_a_line_is_printed_above_bars_that_began_after_its_handler() -> None:
    ours, its = pty.openpty()
    handler = stderr_handler(LogSettings())
    with (
        os.fdopen(its, "w") as terminal,
        Live("the bars", console=Console(file=terminal, width=80, force_terminal=True)),
    ):
        handler.emit(logging.LogRecord("jobs", logging.INFO, "", 0, "12/40 edits", (), None))
    said = read_terminal(ours)
    assert said.index("12/40 edits") < said.rindex("the bars")

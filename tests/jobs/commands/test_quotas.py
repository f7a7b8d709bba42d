"""What commands say about quotas, without a run: the ledger is filled by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console

from jobs.terminal.tables import MOST_CELLS, quotas_table
from pipeline.job.file import load_job
from pipeline.plan.quotas import QuotaRow
from tests.builders.finished_run import FinishedRun
from tests.jobs.test_cli import figures, fpe


@pytest.fixture
def job_file(tmp_path: Path, tiny_checkpoint: Path) -> str:
    """Four red edits and one blue one; two of each colour are enough."""
    colours = ["red", "red", "blue", "red", "red"]
    images = [f"{number}.png" for number in range(5)]
    table = pa.table({"image": images, "colour": colours, "target_prompt": ["x"] * 5})
    pq.write_table(table, tmp_path / "m.parquet")
    job = {
        "manifest": str(tmp_path / "m.parquet"),
        "output": str(tmp_path / "run"),
        "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
        "quotas": {"by": ["colour"], "accepted": 2},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    return str(tmp_path / "job.yaml")


def cells(shown: str) -> dict[str, list[str]]:
    """The rows of a printed table of quotas, by colour."""
    words = [line.split() for line in shown.splitlines()]
    return {row[0]: row[1:] for row in words if row and row[0] in ("red", "blue")}


def test_commands_tell_what_quotas_leave_out(
    job_file: str, picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]
) -> None:
    code, shown, _ = fpe("plan", "--no-probe", job_file)
    assert code == 0
    assert figures(shown) | {"edits": "5", "left out by quotas": "2"} == figures(shown)
    assert figures(shown)["to do in the next round"] == "3"
    # candidates, done, rejected, failed, accepted, quota, short by
    assert cells(shown)["red"] == ["4", "0", "0", "0", "0", "2", "2"]

    run = FinishedRun(load_job(job_file, []), png(picture()))
    keys = run.keys()
    run.commit(run.write_part("part-a", [keys[0], keys[2], keys[3]], failed=[keys[1]]))
    code, shown, _ = fpe("run", job_file)
    assert code == 0
    assert "4 of 5 edits are done, and the quotas ask for no more" in shown
    assert figures(shown)["left out by quotas"] == "1"
    assert cells(shown)["red"] == ["4", "3", "0", "1", "2", "2", "0"]
    assert cells(shown)["blue"] == ["1", "1", "0", "0", "1", "2", "1"]

    code, shown, _ = fpe("status", job_file)
    assert figures(shown)["to do, by the latest plan"] == "0"
    assert figures(shown)["left out by quotas"] == "1"
    code, shown, _ = fpe("verify", job_file)
    assert (code, figures(shown)["pending"], figures(shown)["left out by quotas"]) == (0, "0", "1")
    assert "The run is in order." in shown

    code, shown, _ = fpe("retry", job_file)
    assert code == 0
    assert "1 failed edits are in cells whose quota is filled: not retried." in shown
    code, shown, _ = fpe("verify", job_file, "quotas.accepted=1")
    assert code == 1
    assert "the cell colour=red has 2 accepted edits, and its quota is 1" in shown


def test_of_many_cells_the_emptiest_are_printed() -> None:
    rows = [QuotaRow({"id": f"n{n}"}, 9, n, n, 0, 0, 50, 50 - n, 0) for n in range(50)]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(quotas_table(rows))
        console.print(quotas_table(rows[-MOST_CELLS:]))
    many, few = capture.get().split("Quotas")[1:]
    assert "n0 " in many
    assert "n49 " not in many
    assert "and 10 more cells" in many
    assert "n49 " in few
    assert "more cells" not in few

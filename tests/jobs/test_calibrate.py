"""`fpe calibrate`: a table of judgements becomes rules that a job file takes."""

from __future__ import annotations

import pathlib

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from fpe_core.acceptance import Rules
from jobs.cli import app
from jobs.judgements import read_judgements
from pipeline.errors import JobError
from pipeline.job import Job

JUDGED = pa.table(
    {
        "good": [True, True, True, False, False, True],
        "edit_type": ["colour"] * 5 + [None],
        "changed_share": [0.2, 0.3, 0.4, 0.0, 0.1, None],
        "who": ["me"] * 6,
    }
)


@pytest.fixture(params=["csv", "parquet"])
def table(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / f"judged.{request.param}"
    if request.param == "csv":
        pa.csv.write_csv(JUDGED, file)
    else:
        pq.write_table(JUDGED, file)
    return file


def test_rules_of_a_table_go_into_a_job_file(table: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "new" / "rules.yaml"
    command = ["calibrate", str(table), "--check", str(table), "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    job = Job.model_validate({"manifest": "m", "output": "o", **yaml.safe_load(out.read_text())})
    assert job.judge is not None
    rules = job.judge.to_rules()
    assert rules == Rules.from_dict(
        {
            "colour": [{"score": "changed_share", "at_least": 0.2, "reason": "no_change"}],
            "other": [],
        }
    )
    figures = [line.split() for line in result.output.split("The same rules on")[1].splitlines()]
    assert ["colour", "5", "3", "3", "1.000", "1.000"] in figures
    before = out.read_text()
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert out.read_text() == before, "nothing is overwritten"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"changed_share": [0.1]}, "needs a column `good`"),
        ({"good": [], "changed_share": []}, "has no rows"),
        ({"good": [True], "beauty": [1.0]}, "at least one score"),
        ({"good": ["yes"], "changed_share": [0.1]}, "row 0: good must be true or false"),
        ({"good": [True], "changed_share": ["much"]}, "row 0: changed_share must be a number"),
    ],
)
def test_a_table_that_says_nothing_is_refused(
    tmp_path: pathlib.Path, columns: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
    with pytest.raises(JobError, match=message):
        read_judgements(tmp_path / "judged.parquet")


def test_a_file_that_is_no_table_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "judged.parquet").write_bytes(b"no table")
    with pytest.raises(JobError, match="cannot be read"):
        read_judgements(tmp_path / "judged.parquet")

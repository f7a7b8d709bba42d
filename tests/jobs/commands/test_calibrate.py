"""`fpe calibrate`: a table of judgements becomes rules that a job file takes."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import shutil

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

import fpe_core.still_life
from fpe_core.judging.rules import Rules
from jobs.bench.judged import JUDGED_SCHEMA
from jobs.cli import app
from jobs.commands.judgements import read_judgements
from jobs.job_file.ready_made import BUILTIN_FOLDER
from pipeline.errors import JobError
from pipeline.job.file import load_job
from pipeline.job.job import Job
from tests.builders.tiny_checkpoint import write_defaults

JUDGED = pa.table(
    {
        "good": [True, True, True, False, False, True],
        "edit_type": ["colour"] * 5 + [None],
        "changed_share": [0.2, 0.3, 0.4, 0.0, 0.1, 0.5],
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
            "other": [{"score": "changed_share", "at_least": 0.25, "reason": "no_change"}],
        }
    )
    figures = [line.split() for line in result.output.split("The same rules on")[1].splitlines()]
    assert ["colour", "5", "3", "3", "1.000", "1.000"] in figures
    assert (
        "Edits of colour: a precision of 0.95 and a recall of 0.8 are not certain." in result.output
    )
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
        ({"good": ["perhaps"], "changed_share": [0.1]}, "row 0: good must be true or false"),
        ({"good": [True], "changed_share": ["much"]}, "row 0: changed_share must be a number"),
    ],
)
def test_a_table_that_says_nothing_is_refused(
    tmp_path: pathlib.Path, columns: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "judged.parquet")
    with pytest.raises(JobError, match=message):
        read_judgements(tmp_path / "judged.parquet")


RIGHT = [(True, 0.25, "colour"), (False, 0.5, "colour"), (True, None, "other")]
"""good, changed_share and type of the rows of TABLES."""
TABLES = {
    "judged.csv": b"good,changed_share,edit_type\nTrue,0.25,colour\nFalse,0.5,colour\nTrue,,\n",
    "pandas_with_index.csv": b",good,changed_share,edit_type\n0,True,0.25,colour\n1,False,0.5,"
    b"colour\n2,True,NaN,nan\n3,,0.5,colour\n",
    "floats.csv": b"good,changed_share,edit_type\n1.0,0.25,colour\n0.0,.5,colour\n1.0,,\n,1,\n",
    "EXCEL.CSV": b"\xef\xbb\xbfgood,changed_share,edit_type\r\nTRUE,0.25,colour\r\n"
    b"FALSE,0.5,colour\r\nTRUE,,\r\n,,\r\n",
    "excel_german.csv": b"\xef\xbb\xbfgood;changed_share;edit_type\r\n1;0,25;colour\r\n"
    b"0;5E-1;colour\r\n1;;\r\n;;\r\n",
    "excel_hint.csv": b"sep=;\r\ngood;changed_share;edit_type\r\nyes;0.25;colour\r\n"
    b"NO;0.5;colour\r\ny;N/A\r\n",
    "unicode_text.txt": "good\tchanged_share\tedit_type\r\nTRUE\t0,25\tcolour\r\n"
    "FALSE\t0,5\tcolour\r\nTRUE\t\t\r\n".encode("utf-16"),
    "quoted.csv": b'"prompt, in words","good","changed_share","edit_type"\n'
    b'"a\nb, c","T","0.25","colour"\n"","F","0.5","colour"\n"x","T","null",""\n',
    "packed.csv.gz": gzip.compress(
        b"good,changed_share,edit_type\nTrue,0.25,colour\nFalse,0.5,colour\nTrue,,\n"
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_pandas_and_spreadsheets_write_them(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).write_bytes(TABLES[name])
    judged = read_judgements(tmp_path / name)
    found = [(e.is_good, e.scores.changed_share, kind) for kind, of in judged.items() for e in of]
    assert found == RIGHT


@pytest.mark.parametrize(
    "good",
    [
        pa.array([True, False, None, True]),
        pa.array([1.0, 0.0, float("nan"), 1.0]),  # pandas, of 1, 0 and empty
        pa.array([1, 0, None, 1], pa.int8()),
        pa.array(["True", "no", "", "TRUE"]),
        pa.array(["yes", "no", None, "yes"]).dictionary_encode(),
        pa.array([1, 0, None, 1], pa.decimal128(3, 1)),
    ],
    ids=lambda column: str(column.type),
)
def test_the_columns_of_parquet_tables(tmp_path: pathlib.Path, good: pa.Array) -> None:
    shares = pa.array([0.25, 0.5, 0.75, float("nan")], pa.float32())
    kinds = ["colour", "colour", "colour", "nan"]
    pq.write_table(
        pa.table({"good": good, "changed_share": shares, "edit_type": kinds}),
        tmp_path / "judged.parquet",
    )
    judged = read_judgements(tmp_path / "judged.parquet")
    found = [(e.is_good, e.scores.changed_share, kind) for kind, of in judged.items() for e in of]
    assert found == RIGHT


def test_a_large_table_whose_columns_begin_empty(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "judged.csv"
    with file.open("w") as out:
        out.write("prompt,good,changed_share\n")
        out.writelines([f'"{"long " * 20}\nprompt",,\n'] * 50_000)
        out.write(f'"{"long " * 50_000}",True,0.5\n')
    (edit,) = read_judgements(file)["other"]
    assert (edit.is_good, edit.scores.changed_share) == (True, 0.5)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("judged.xlsx", b"PK", r"is a spreadsheet: save it as CSV"),
        ("judged.ODS", b"PK", r"is a spreadsheet: save it as CSV"),
        ("judged.csv", b"good,ssim\n1,0.5\n1,0.5,7\n", "row 1: has 3 cells for 2 columns"),
        ("judged.csv", b"good,good,ssim\n1,1,0.5\n", "has the column good twice"),
        ("judged.csv", b"good,ssim,a\n1,0.5,caf\xe9\n", "is not UTF-8: save it as CSV again"),
        ("judged.csv", b'good,ssim\n1,"0,5"\n', r"row 0: ssim must be a number, got '0,5'"),
        ("judged.csv", b"", "needs a column `good`"),
        ("judged.csv.gz", b"good,ssim\n1,0.5\n", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_text_table(
    tmp_path: pathlib.Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(JobError, match=message):
        read_judgements(tmp_path / name)


def test_a_file_that_is_no_table_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "judged.parquet").write_bytes(b"no table")
    with pytest.raises(JobError, match="cannot be read"):
        read_judgements(tmp_path / "judged.parquet")


@pytest.fixture(scope="module")
def quick_still_life(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The built-in model, which recommends few steps."""
    folder = tmp_path_factory.mktemp("quick") / "still-life"
    builtin = pathlib.Path(fpe_core.still_life.__file__).parent / "checkpoint"
    shutil.copytree(builtin, folder, copy_function=os.symlink)
    (folder / "fpe_defaults.json").unlink()
    recommended = json.loads((builtin / "fpe_defaults.json").read_text())
    write_defaults(folder, **{**recommended, "steps": 6})
    return folder


def test_the_benchmark_judges_where_nobody_has(
    quick_still_life: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "new" / "rules.yaml"
    command = ["calibrate", "--benchmark", "--type", "colour", "--device", "cpu"]
    command += ["--checkpoint", str(quick_still_life), "--scenes", "2", "--test-scenes", "1"]
    result = CliRunner().invoke(app, [*command, "--out", str(out)], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    rules = load_job(BUILTIN_FOLDER / "relabel.yaml", [f"judge.rules={out}"]).judge
    assert rules is not None
    assert set(rules.rules) == {"colour"}

    judged = pq.read_table(out.with_name("rules-validation.parquet"))
    assert judged.schema.equals(JUDGED_SCHEMA)
    rows = judged.to_pylist()
    arms = ["default", "fraction 0", "fraction 1", "guidance 1"]
    assert [(row["source_id"], row["arm"]) for row in rows] == [
        (str(seed), arm) for arm in arms for seed in (3000, 3001)
    ]
    for row in rows:
        assert row["good"] == (row["success"] and row["structure"] >= 0.75)
        assert row["structure_distance"] is not None
        assert row["directional_similarity"] is not None
    assert {row["good"] for row in rows} == {True, False}, "thresholds need both"
    tested = pq.read_table(out.with_name("rules-test.parquet"))
    assert tested.column("source_id").to_pylist() == ["2000"] * 4

    again = tmp_path / "again.yaml"
    tables = [str(out.with_name(f"rules-{split}.parquet")) for split in ("validation", "test")]
    second = CliRunner().invoke(
        app, ["calibrate", tables[0], "--check", tables[1], "--out", str(again)]
    )
    assert second.exit_code == 0, second.output
    assert again.read_text() == out.read_text(), "fitted to the saved table, the rules are the same"

    other = CliRunner().invoke(app, [*command, "--out", str(out.with_name("rules.yml"))])
    assert other.exit_code == 2
    assert "rules-validation.parquet already exists" in " ".join(other.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a TABLE of judged edits, or give --benchmark"),
        (["judged.parquet", "--benchmark"], "--benchmark judges its own edits"),
        (["--benchmark", "--type", "mood"], "--type mood: the benchmark has shape, colour"),
        (["--benchmark", "--scenes", "0"], "greater than or equal to 1"),
        (["--benchmark", "--clip", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_mistakes_are_said_before_anything_is_computed(
    arguments: list[str], message: str, tmp_path: pathlib.Path
) -> None:
    where = ["--device", "cpu", "--out", str(tmp_path / "new" / "rules.yaml")]
    result = CliRunner().invoke(app, ["calibrate", *arguments, *where])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("columns", "outcome"),
    [
        ({"lpips": [0.1, 0.2, 0.9], "edit_type": ["style"] * 3}, "structure_lost"),
        ({"saturation_shift": [0.1, 0.2, 0.9]}, "edits of other: no edit has a score to fit"),
    ],
)
def test_no_table_gives_rules_that_accept_everything(
    columns: dict[str, list[object]], outcome: str, tmp_path: pathlib.Path
) -> None:
    pq.write_table(pa.table({"good": [True, True, False], **columns}), tmp_path / "judged.parquet")
    out = tmp_path / "rules.yaml"
    command = ["calibrate", str(tmp_path / "judged.parquet"), "--out", str(out)]
    result = CliRunner().invoke(app, command)
    if "lpips" in columns:
        assert result.exit_code == 0, result.output
        (rule,) = yaml.safe_load(out.read_text())["judge"]["rules"]["style"]
        assert (rule["score"], rule["reason"]) == ("lpips", outcome)
    else:
        assert result.exit_code == 2
        assert outcome in " ".join(result.stderr.split())
        assert not out.exists()


def test_only_some_types_of_a_table(table: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "rules.yaml"
    command = ["calibrate", str(table), "--out", str(out), "--type"]
    assert CliRunner().invoke(app, [*command, "colour"]).exit_code == 0
    assert set(yaml.safe_load(out.read_text())["judge"]["rules"]) == {"colour"}
    out.unlink()
    result = CliRunner().invoke(app, [*command, "mood"])
    assert result.exit_code == 2
    assert "has no edits of mood; it has colour, other" in " ".join(result.stderr.split())

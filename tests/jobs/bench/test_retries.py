"""`fpe bench retries` as it is typed, on a tiny model."""

from __future__ import annotations

import pathlib

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fpe_core.judging.rules import RejectReason
from jobs.bench.options import STILL_LIFE_RULES
from jobs.bench.retry_figures import ATTEMPTS_SCHEMA, factors_of
from jobs.cli import app
from jobs.terminal.exits import OK, USAGE
from pipeline.job.rules_file import read_rules

NEVER = """\
judge:
  rules:
    colour:
      - {score: changed_share, at_least: 1.0, reason: no_change}
"""


def fpe(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100"})
    return result.exit_code, result.stdout, result.stderr


def test_attempts_are_counted_printed_and_written(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(NEVER)
    where = ("--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path))
    code, out, _ = fpe("bench", "retries", "--scenes", "2", "--rules", str(rules), *where)
    assert code == OK
    table = pq.read_table(tmp_path / "attempts.parquet")
    assert table.schema.equals(ATTEMPTS_SCHEMA)
    rows = table.to_pylist()
    assert {row["factor"] for row in rows} == {"colour"}, "no other type has rules"
    assert [row["number"] for row in rows] == [0, 1, 2, 0, 1, 2]
    assert {row["reason"] for row in rows} == {RejectReason.NO_CHANGE.value}
    assert f"{sum(row['unet_rows'] for row in rows):,.0f}" in out
    for word in ("0 of 2", "no_change", "replaced_fraction"):
        assert word in out


def test_rules_that_cannot_be_read_start_nothing(tmp_path: pathlib.Path) -> None:
    code, _, said = fpe("bench", "retries", "--rules", str(tmp_path / "none.yaml"))
    assert code == USAGE
    assert "none.yaml" in said


@pytest.mark.parametrize("factor", ["colour", "background"])
def test_our_own_rules_are_there(factor: str) -> None:
    assert factor in factors_of(read_rules(str(STILL_LIFE_RULES)))

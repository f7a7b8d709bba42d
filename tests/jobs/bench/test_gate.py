"""`fpe bench gate` as it is typed."""

from __future__ import annotations

import pathlib

import pyarrow.parquet as pq
from typer.testing import CliRunner

from fpe_core.still_life.benchmark.hard_sources import FOREIGN_KINDS, SCENE_KINDS
from jobs.cli import app
from jobs.terminal.exits import OK


def test_sources_and_figures_are_printed_and_edits_written(
    tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    where = ("--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path))
    arguments = ["bench", "gate", "steps=2", "--scenes", "1", *where]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "90"})
    assert result.exit_code == OK
    for word in (*SCENE_KINDS, *FOREIGN_KINDS, "AUC, bad edits", "out-of-domain"):
        assert word in result.stdout

    rows = pq.read_table(tmp_path / "edits.parquet").to_pylist()
    assert len(rows) == 5 * (len(SCENE_KINDS) + 1) + len(FOREIGN_KINDS)
    for row in rows:
        assert row["autoencoder_psnr_db"] > 0
        assert (row["factor"] is None) == (row["kind"] in FOREIGN_KINDS)
        if row["factor"]:
            assert row["is_good"] == (row["success"] and row["structure"] >= 0.75)

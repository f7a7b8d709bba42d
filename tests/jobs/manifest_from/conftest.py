"""What the tests of `fpe manifest from` share: pictures by name, and the command as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.jobs.test_cli import fpe


class Made:
    """What `fpe manifest from SET SOURCE --json` printed and wrote."""

    def __init__(self, printed: dict[str, Any]) -> None:
        self.printed = printed
        self.table: pa.Table = pq.read_table(printed["manifest"])
        self.rows: list[dict[str, Any]] = self.table.to_pylist()
        left_out = printed["left_out"]
        self.left_out: list[dict[str, Any]] = (
            [] if left_out is None else pq.read_table(left_out).to_pylist()
        )

    def row(self, name: str) -> dict[str, Any]:
        (found,) = (row for row in [*self.rows, *self.left_out] if row["id"] == name)
        return found


Make = Callable[..., Made]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(set, source, *options): a manifest beside the set's folder."""

    def run(name: str, source: Path, *options: str) -> Made:
        target = str(tmp_path / f"{name}.parquet")
        code, printed, errors = fpe(
            "manifest", "from", name, str(source), "--output", target, "--json", *options
        )
        assert (code, errors) == (0, ""), errors
        return Made(json.loads(printed))

    return run


@pytest.fixture
def refusal() -> Callable[..., str]:
    """refusal(set, source, *options): the message, without line breaks, of a command that ends
    with 2."""

    def run(name: str, source: Path | str, *options: str) -> str:
        code, printed, errors = fpe("manifest", "from", name, str(source), *options)
        assert (code, printed) == (2, ""), printed
        return " ".join(errors.split())

    return run


@pytest.fixture
def save(picture: Callable[..., Image.Image]) -> Callable[..., Path]:
    """save(path, number, width, height): a picture in a file, whose folders are made."""

    def write(path: Path, number: int = 0, width: int = 64, height: int = 64) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, width, height).save(path)
        return path

    return write

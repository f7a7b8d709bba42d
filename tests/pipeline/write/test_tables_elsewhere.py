"""The tables of a run folder, read by other libraries: one schema, the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.job.job import Job
from pipeline.verify.verify import verify_run
from tests.builders.finished_run import make_edits

ROWS = 6


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    picture: Callable[..., Image.Image],
    png: Callable[[Image.Image], bytes],
) -> Path:
    """A run of three parts and three ledger files. Of every column some part has only nulls."""
    folder = tmp_path_factory.mktemp("tables")
    columns: dict[str, Any] = {
        "image": [png(picture(n)) for n in range(4)] + [b"broken", None],
        "source_prompt": [None] * 5 + ["a cat"],
        "seed": [None] * 5 + [7],
        "target_prompt": ["a red cat"] * ROWS,
        "id": [None, None, "c", "d", "e", "f"],
        "weather": [None, None, "rain", "snow", None, None],
        "speed": pa.array([None, None, 3, 4, None, None], pa.int16()),
        "boxes": [None, None, [[1, 2, 3, 4]], [], None, None],
        "camera": [None, None, {"lens": "35 mm", "f": 1.8}, None, None, None],
        "late": pa.nulls(ROWS),
    }
    pq.write_table(pa.table(columns), folder / "manifest.parquet")
    job = Job.model_validate(
        {
            "manifest": str(folder / "manifest.parquet"),
            "output": str(folder / "run"),
            "model": {"checkpoint": str(tiny_checkpoint)},
            "edit": {"steps": 1},
        }
    )
    make_edits(job, groups_per_block=2)
    found = verify_run(job)
    assert (found.ok, found.accepted, found.failed) == (True, 5, 1)
    return folder / "run"


def metadata_files(run: Path) -> list[str]:
    return sorted(map(str, run.glob("part-*/metadata.parquet")))


def ledger_files(run: Path) -> list[str]:
    return sorted(map(str, run.glob(".ledger/*.parquet")))


@pytest.mark.parametrize("files", [metadata_files, ledger_files])
def test_all_files_of_a_table_have_one_schema(
    run: Path, files: Callable[[Path], list[str]]
) -> None:
    schemas = [pq.read_schema(file).remove_metadata() for file in files(run)]
    assert len(schemas) == 3
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)
    assert not any(pa.types.is_null(field.type) for field in schemas[0])


@pytest.mark.parametrize(("files", "rows"), [(metadata_files, 5), (ledger_files, 6)])
def test_pyarrow_pandas_and_duckdb_read_the_same_rows(
    run: Path, files: Callable[[Path], list[str]], rows: int
) -> None:
    names = files(run)
    for order in (names, names[::-1]):  # a reader takes its schema from the first file
        table = pyarrow.dataset.dataset(order).to_table()
        frame = pd.concat([pd.read_parquet(name) for name in order])
        relation = duckdb.sql(f"select * from read_parquet({order!r})")
        assert len(table) == len(frame) == len(relation.fetchall()) == rows
        assert table.column_names == list(frame.columns) == relation.columns
        ids = [value if isinstance(value, str) else value.hex() for value in frame["edit_id"]]
        assert len(set(ids)) == rows
        prompts = duckdb.sql(f"select distinct target_prompt from read_parquet({order!r})")
        assert prompts.fetchall() == [("a red cat",)]


def test_duckdb_reads_the_carried_values_with_a_pattern(run: Path) -> None:
    found = duckdb.sql(
        "select weather, speed, boxes, camera.lens, late, fit_scale_x "
        f"from read_parquet('{run}/part-*/metadata.parquet') where weather = 'rain'"
    ).fetchall()
    assert found == [("rain", 3, [[1, 2, 3, 4]], "35 mm", None, 1.0)]


def test_datasets_reads_pictures_and_rows(run: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(run), split="train", cache_dir=str(tmp_path))
    assert len(loaded) == 5
    assert {row["weather"] for row in loaded} == {None, "rain", "snow"}
    assert all(row["edited"].size == row["source"].size for row in loaded)


def test_no_file_is_empty(run: Path) -> None:
    assert [path for path in run.rglob("*") if path.is_file() and not path.stat().st_size] == []

"""What a manifest on S3 costs: bytes and requests, counted at the server."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from pipeline.manifest.files import Manifest
from tests.servers.s3_gate import Gate

ROWS = 40_000


def columns_of(rows: int) -> dict[str, Any]:
    """Six columns of text and numbers that do not compress."""
    random = np.random.default_rng(0)

    def texts(size: int) -> list[str]:
        return [random.bytes(size).hex() for _ in range(rows)]

    return {
        "image": texts(20),
        "target_prompt": texts(40),
        "id": texts(8),
        "source_prompt": texts(20),
        "seed": random.integers(0, 2**60, rows),
        "note": texts(20),
    }


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pa.table(columns_of(ROWS))


def stored(table: pa.Table, **settings: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **settings)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("row_group_size", [None, 10_000, 1000, 100])
def test_a_pass_costs_the_size_of_the_file(
    gate: Gate, table: pa.Table, row_group_size: int | None
) -> None:
    """With one large row group, and with row groups whose columns have 2 to 8 kB each."""
    data = stored(table, row_group_size=row_group_size)
    gate.behind.put("run/m.parquet", data)
    manifest = Manifest.open(gate.behind.url("run/m.parquet"), gate.folder().options)
    gate.tries.clear()
    gate.bytes_read = 0
    batches = list(manifest.batches())
    assert sum(batch.rows for batch in batches) == ROWS
    assert batches[-1].known["image"][-1] == table["image"][-1].as_py()
    assert gate.bytes_read <= 1.1 * len(data)
    assert gate.tries["GET"] <= 5 + len(data) // (1 << 20)


def test_many_files_cost_a_few_requests_each(gate: Gate) -> None:
    sizes = []
    for number in range(40):
        data = stored(pa.table(columns_of(10)))
        gate.behind.put(f"run/data/{number:02d}.parquet", data)
        sizes.append(len(data))
    folder = gate.folder()
    manifest = Manifest.open(folder.url_of("data"), folder.options)
    gate.tries.clear()
    gate.bytes_read = 0
    rows = [batch.known["id"][0] for batch in manifest.batches()]
    assert len(rows) == 40
    assert gate.bytes_read <= 1.1 * sum(sizes)
    assert gate.tries["GET"] <= 40
    assert gate.tries["HEAD"] <= 40


@pytest.fixture
def under_way(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The most requests that were under way at the same time, by the method of the API."""
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **keys: Any) -> Any:
        now[method] += 1
        most[method] = max(most[method], now[method])
        try:
            await asyncio.sleep(0.02)  # as a store far away would take
            return await call(self, method, *arguments, **keys)
        finally:
            now[method] -= 1

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return most


def test_the_files_of_a_manifest_are_read_side_by_side(gate: Gate, under_way: Counter[str]) -> None:
    """Footers, and small files in a pass: several requests are under way at the same time."""
    for number in range(24):
        gate.behind.put(f"run/data/{number:02d}.parquet", stored(pa.table(columns_of(1))))
    folder = gate.folder()
    manifest = Manifest.open(folder.url_of("data"), folder.options)
    assert under_way["get_object"] >= 4
    under_way.clear()
    assert sum(batch.rows for batch in manifest.batches()) == 24
    assert under_way["get_object"] >= 4


def test_equal_schemas_are_kept_once(gate: Gate) -> None:
    for number in range(8):
        gate.behind.put(f"run/data/{number}.parquet", stored(pa.table(columns_of(1))))
    folder = gate.folder()
    manifest = Manifest.open(folder.url_of("data"), folder.options)
    assert len({id(file.schema) for file in manifest.files}) == 1

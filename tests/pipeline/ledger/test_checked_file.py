"""Files of the ledger and of parts show every damage, and are Parquet files for everybody."""

from __future__ import annotations

import io
import random
from pathlib import Path

import datasets
import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LedgerError
from pipeline.ledger.checked_file import DAMAGED, checked_parquet, read_checked, schema_metadata
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.parts import read_part_outcomes, write_outcomes
from pipeline.storage.folder import Folder
from pipeline.write.part import encode_metadata
from tests.builders.outcome_rows import accepted, failed, table_of

DAMAGES = 1500


@pytest.fixture
def table() -> pa.Table:
    values = {"number": list(range(2000)), "text": [f"a {n % 7}" for n in range(2000)]}
    return pa.table(values).replace_schema_metadata({"key": "value"})


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Another file: some bits or bytes changed, a piece lost, the end missing, or bytes added."""
    while True:
        found, place = bytearray(data), chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                found[place] ^= 1 << chance.randrange(8)
            case 1:
                found[place : place + 200] = chance.randbytes(len(found[place : place + 200]))
            case 2:
                del found[place : place + chance.randrange(1, 100)]
            case 3:
                del found[max(1, place) :]
            case _:
                found[place:place] = chance.randbytes(chance.randrange(1, 20))
        if bytes(found) != data:
            return bytes(found)


def test_the_table_and_its_key_values_are_read_back(table: pa.Table) -> None:
    data = checked_parquet(table)
    assert read_checked(data).equals(table)
    assert read_checked(data, ["text"]).equals(table.select(["text"]))
    assert schema_metadata(data)[b"key"] == b"value"


def test_a_file_without_a_hash_is_read_as_well(table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    assert read_checked(sink.getvalue()).equals(table)


def test_other_programs_read_it(table: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(checked_parquet(table))
    assert pq.read_table(path).equals(table)
    assert pd.read_parquet(path).equals(table.to_pandas())
    found = duckdb.sql(f"select count(*), sum(number) from '{path}' where text = 'a 1'").fetchall()
    ones = [n for n in range(2000) if n % 7 == 1]
    assert found == [(len(ones), sum(ones))]
    loaded = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["text"] == table["text"].to_pylist()


def test_every_damage_is_noticed(table: pa.Table) -> None:
    data, chance = checked_parquet(table), random.Random(7)
    for _ in range(DAMAGES):
        with pytest.raises(DAMAGED):
            read_checked(damaged(data, chance))


def test_every_damaged_ledger_file_is_named(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    Ledger.open(folder).commit(table_of(accepted(1, "part-a"), failed(2)))
    (name,) = folder.list(".ledger")
    data, chance = folder.read(name), random.Random(8)
    for number in range(DAMAGES):
        folder.replace(name, damaged(data, chance))
        with pytest.raises(LedgerError, match=r"outcomes-00000000\.parquet is damaged"):
            Ledger.open(folder) if number % 2 else list(Ledger(folder).outcomes())


def test_every_damaged_metadata_file_is_named(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    record = write_outcomes(folder, "part-a", table_of(accepted(1, "part-a")), {})
    data, chance = encode_metadata(pa.table({"a": [1, 2]}), record), random.Random(9)
    for _ in range(DAMAGES):
        folder.replace("part-a/metadata.parquet", damaged(data, chance))
        with pytest.raises(LedgerError, match=r"part-a/metadata\.parquet is damaged"):
            read_part_outcomes(folder, "part-a")

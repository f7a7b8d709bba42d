"""Folders named key=value are columns, with the values that pyarrow.dataset gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ManifestError
from pipeline.manifest.files import Manifest
from pipeline.manifest.partitions import partitions_of
from tests.pipeline.manifest.test_files import good
from tests.servers.stores import Store, store_on_disk

ROW = {"image": ["a.png"], "target_prompt": ["x"]}


def rows(urls: str | list[str], options: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """All rows with all columns, as they are carried or read."""
    manifest = Manifest.open(urls, options, needs_target_prompt=False)
    found = []
    for batch in manifest.batches():
        carried = batch.carried.to_pylist() or [{}] * batch.rows
        for index in range(batch.rows):
            known = {name: of[index] for name, of in batch.known.items()}
            given = {name: value for name, value in known.items() if name in manifest.columns}
            found.append(given | carried[index])
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return store_on_disk(tmp_path / "data")


class TestValues:
    """The right values are those of pyarrow.dataset 26.0.1 (partitioning="hive")."""

    @pytest.mark.parametrize(
        "texts",
        [
            ["1", "2"],
            ["01", "-3"],
            ["1", "two"],
            ["99999999999"],
            ["1.5"],
            ["true"],
            ["2024-01-01"],
            ["a b", "c/d%é", "a+b", "=", ""],
            ["1", None],
            ["cat", None],
        ],
    )
    def test_are_those_of_pyarrow(self, tmp_path: Path, texts: list[str | None]) -> None:
        table = pa.table({"image": list(map(str, range(len(texts)))), "kind": texts})
        schema = pa.schema([table.schema.field("kind")])
        partitioning = pads.partitioning(schema, flavor="hive")
        pads.write_dataset(table, tmp_path / "d", format="parquet", partitioning=partitioning)
        there = pads.dataset(tmp_path / "d", partitioning="hive").to_table()
        manifest = Manifest.open(str(tmp_path / "d"), needs_target_prompt=False)
        assert manifest.carried_schema.field("kind").type == there.schema.field("kind").type
        key = lambda row: row["image"]  # noqa: E731
        assert sorted(rows(str(tmp_path / "d")), key=key) == sorted(there.to_pylist(), key=key)

    def test_of_spark_and_polars(self, disk: Store) -> None:
        """Spark 3.5 and polars 1.30 encode `:` and spaces, and write marks that are no data."""
        disk.put_table("d/at=10%3A30 h/part-0.parquet", ROW)
        disk.put_table("d/at=10%3A45%20h/part-0.parquet", ROW)
        for junk in ("d/_SUCCESS", "d/._SUCCESS.crc", "d/at=10%3A45%20h/.part-0.parquet.crc"):
            disk.put(junk, b"junk")
        disk.put_table("d/_temporary/0/at=1/part-1.parquet", ROW)
        disk.put_table("d/at=10%3A45%20h/_metadata", {"other": [1]})
        assert [row["at"] for row in rows(disk.url("d"))] == ["10:30 h", "10:45 h"]

    def test_a_key_with_an_underscore_is_not_hidden(self, disk: Store) -> None:
        """Spark hides folders that begin with _, unless they are partitions (Spark 3.5,
        HadoopFSUtils.shouldFilterOutPathName)."""
        disk.put_table("d/_year=2024/part-0.parquet", ROW)
        assert [row["_year"] for row in rows(disk.url("d"))] == [2024]

    def test_nulls_only(self, disk: Store) -> None:
        disk.put_table("d/k=__HIVE_DEFAULT_PARTITION__/a.parquet", ROW)
        assert rows(disk.url("d"))[0]["k"] is None

    def test_what_is_not_utf8(self, disk: Store) -> None:
        disk.put_table("d/k=%FF/a.parquet", ROW)
        with pytest.raises(ManifestError, match=r"folder k=%FF is not UTF-8"):
            rows(disk.url("d"))

    def test_a_key_twice(self, disk: Store) -> None:
        disk.put_table("d/k=1/k=2/a.parquet", ROW)
        with pytest.raises(ManifestError, match=r"two of its folders are called k=…"):
            rows(disk.url("d"))


class TestWhichFolders:
    def test_on_every_store(self, store: Store) -> None:
        for split in ("train", "test"):
            store.put_table(f"d/split={split}/species=a cat/m.parquet", ROW)
        options = store.storage_options
        for url in ("d", "d/split=*/*/*.parquet", "d/**/*.parquet"):
            found = rows(store.url(url), options)
            assert [(row["split"], row["species"]) for row in found] == [
                ("test", "a cat"),
                ("train", "a cat"),
            ]
        for url in ("d/split=test", "d/split=test/species=a cat/m.parquet", "d/split=test/*/*.*"):
            assert [row["split"] for row in rows(store.url(url), options)] == ["test"], url

    def test_those_at_the_end_of_the_place_and_all_below(self) -> None:
        assert partitions_of("/x/lr=1/runs", "a=2/raw/b=3/m.parquet") == {"a": "2", "b": "3"}
        assert partitions_of("s3://b/d/a=1/b=2", "m.parquet") == {"a": "1", "b": "2"}
        assert partitions_of("s3://b/d", "=1/a=/x=y=z/m=n.parquet") == {"a": "", "x": "y=z"}

    def test_mixed_ones_are_named(self, disk: Store) -> None:
        disk.put_table("d/a=1/b=1/m.parquet", ROW)
        disk.put_table("d/b=1/a=1/m.parquet", ROW)
        assert len(rows(disk.url("d"))) == 2, "another order of folders is no other layout"
        disk.put_table("d/a=2/m.parquet", ROW)
        disk.put_table("d/m.parquet", ROW)
        with pytest.raises(ManifestError, match=r"different partitions") as caught:
            rows(disk.url("d"))
        assert set(caught.value.problems) == {
            "a=1/b=1/m.parquet: a, b",
            "a=2/m.parquet: a",
            "m.parquet: none",
        }

    def test_a_list_may_mix_them(self, disk: Store) -> None:
        one = disk.put_table("d/a=1/m.parquet", ROW)
        two = disk.put_table("m.parquet", ROW)
        assert [row["a"] for row in rows([one, two])] == [1, None]

    def test_relative_uris_and_their_keys_do_not_change(self, disk: Store) -> None:
        disk.put_table("d/split=a/m.parquet", ROW)
        (row,) = good(disk.url("d"))
        assert row.uri == f"{disk.url()}/d/split=a/a.png"
        assert row.uri_key == "split=a/a.png"
        assert row.split == "a"


class TestColumns:
    @pytest.mark.parametrize(
        ("folder", "name", "value"),
        [
            ("split=1", "split", "1"),
            ("id=007", "id", "007"),
            ("seed=5000000000", "seed", 5000000000),
            ("guidance_scale=7.5", "guidance_scale", 7.5),
            ("steps=20", "steps", 20),
            ("target_prompt=a%20red%20star", "target_prompt", "a red star"),
            ("negative_prompt=12", "negative_prompt", "12"),
        ],
    )
    def test_known_ones_have_the_type_they_need(
        self, disk: Store, folder: str, name: str, value: object
    ) -> None:
        disk.put_table(f"d/{folder}/m.parquet", {"image": ["a.png"]})
        assert rows(disk.url("d")) == [{"image": "a.png", name: value}]

    def test_known_ones_with_a_wrong_value(self, disk: Store) -> None:
        disk.put_table("d/steps=many/m.parquet", ROW)
        with pytest.raises(ManifestError) as caught:
            rows(disk.url("d"))
        assert caught.value.problems == (
            "steps=many/m.parquet: column steps must be whole numbers, it is string",
        )

    def test_an_image_a_prompt_and_a_label(self, disk: Store) -> None:
        disk.put_table("d/image=p%2F1.png/colour=red/m.parquet", {"target_prompt": ["x"]})
        prompts = {"target": "a {style} {colour} star", "labels": {"style": ["old"]}}
        (row,) = good(disk.url("d"), prompts)
        assert row.uri.endswith("/colour=red/p/1.png")
        assert [edit.target_prompt for edit in row.edits] == ["a old red star"]

    def test_one_that_is_in_the_file_as_well(self, disk: Store) -> None:
        """Polars writes it into the file too (partition_by with include_key, polars 1.30)."""
        disk.put_table("d/n=1/m.parquet", ROW | {"n": pa.array([1], pa.int64())})
        disk.put_table("d/n=2/m.parquet", ROW)
        assert [row["n"] for row in rows(disk.url("d"))] == [1, 2]
        manifest = Manifest.open(disk.url("d"))
        assert manifest.carried_schema.field("n").type == pa.int64()

    def test_one_whose_column_says_something_else(self, disk: Store) -> None:
        disk.put_table("d/n=1/m.parquet", {"image": ["a"] * 3, "n": [1, 1, 2]})
        with pytest.raises(
            ManifestError, match=r"m\.parquet: row 2: column n is 2, and the file's folder says n=1"
        ):
            rows(disk.url("d"))
        disk.put_table("d/n=1/m.parquet", {"image": ["a"], "n": pa.array([None], pa.int8())})
        with pytest.raises(ManifestError, match=r"row 0: column n is None"):
            rows(disk.url("d"))

    def test_one_whose_column_has_another_type(self, disk: Store) -> None:
        disk.put_table("d/n=one/m.parquet", {"image": ["a"], "n": [1]})
        with pytest.raises(ManifestError, match=r"column n is int64, and the folder n=one is not"):
            rows(disk.url("d"))

    def test_dates_and_categories_in_the_file(self, disk: Store) -> None:
        column = pa.array(["2024-05-01"]).cast(pa.date32())
        kinds = pa.array(["x"]).dictionary_encode()
        disk.put_table("d/day=2024-05-01/k=x/m.parquet", ROW | {"day": column, "k": kinds})
        assert [str(row["day"]) for row in rows(disk.url("d"))] == ["2024-05-01"]


def test_many_rows_and_files_stay_in_step(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / f"n={number}"
        folder.mkdir()
        images = [f"{number}-{index}" for index in range(2500)]
        pq.write_table(pa.table({"image": images, "target_prompt": images}), folder / "m.parquet")
    found = rows(str(tmp_path))
    assert len(found) == 7500
    assert all(row["image"].split("-")[0] == str(row["n"]) for row in found)

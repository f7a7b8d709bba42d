"""Folders of table formats: live rows by the log, or a refusal; never a dead file."""

from __future__ import annotations

import json
import struct
import sys
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.memory import InMemoryCatalog
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
    write_manifest_list,
)
from pyiceberg.table import Table
from pyiceberg.typedef import Record
from pyiceberg.types import LongType
from pyroaring import BitMap

from pipeline.errors import ManifestError
from pipeline.manifest.files import Manifest
from tests.builders.delta_vectors import roaring, z85
from tests.pipeline.manifest.test_partitions import rows
from tests.servers.stores import Store

Row = dict[str, Any]
THREE = pa.table(
    {
        "image": ["0.png", "1.png", "2.png"],
        "target_prompt": ["red"] * 3,
        "kind": ["a b", "c%", None],
    }
)


def images(urls: str | list[str], options: dict[str, Any] | None = None) -> list[str]:
    return sorted(row["image"] for row in rows(urls, options))


def put_folder(store: Store, folder: Path, path: str) -> str:
    """Copies a folder of the disk to a store; returns its URL."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            store.put(f"{path}/{file.relative_to(folder)}", file.read_bytes())
    return store.url(path)


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A table of deltalake 1.6.6, partitioned: row 1 was deleted, row 2 has another prompt."""
    folder = tmp_path / "delta"
    write_deltalake(folder, THREE, partition_by=["kind"])
    DeltaTable(folder).delete("image = '1.png'")
    DeltaTable(folder).update(predicate="image = '2.png'", updates={"target_prompt": "'blue'"})
    return folder


RIGHT = [
    {"image": "0.png", "target_prompt": "red", "kind": "a b"},
    {"image": "2.png", "target_prompt": "blue", "kind": None},
]


class TestDelta:
    def test_the_live_rows_on_every_store(self, delta: Path, store: Store) -> None:
        url = put_folder(store, delta, "t")
        found = rows(url, store.storage_options)
        assert sorted(found, key=lambda row: row["image"]) == RIGHT
        assert len(list(delta.rglob("*.parquet"))) == 4, "two of the files are dead"

    def test_paths_into_it_name_live_files_only(self, delta: Path, store: Store) -> None:
        url, options = put_folder(store, delta, "t"), store.storage_options
        assert images(f"{url}/**/*.parquet", options) == ["0.png", "2.png"]
        assert images(f"{url}/*/*.parquet", options) == ["0.png", "2.png"]
        assert images(f"{url}/kind=a%20b", options) == ["0.png"]
        assert images(store.url("t*/kind=a%20b/*.parquet"), options) == ["0.png"]
        with pytest.raises(ManifestError, match=r"inside of the Delta table .*/t, and none of"):
            rows(f"{url}/kind=c%25", options)
        live = {file.url for file in Manifest.open(url, options).files}
        for file in sorted(delta.rglob("*.parquet")):
            each = f"{url}/{file.relative_to(delta)}"
            if each in live:
                assert len(rows(each, options)) == 1
            else:
                with pytest.raises(ManifestError, match="none of them is live"):
                    rows(each, options)

    def test_one_among_plain_files(self, delta: Path, store: Store) -> None:
        store.put_table("data/plain.parquet", {"image": ["p.png"], "target_prompt": ["x"]})
        put_folder(store, delta, "data/deep/t")
        options = store.storage_options
        assert images(store.url("data"), options) == ["0.png", "2.png", "p.png"]
        assert images(store.url("data/**/*.parquet"), options) == ["0.png", "2.png", "p.png"]

    def test_relative_uris_are_relative_to_the_table(self, delta: Path, tmp_path: Path) -> None:
        """Compaction moves rows between files and folders; their ids stay."""
        for url, key in ((delta, ""), (tmp_path, "delta")):
            files = Manifest.open(str(url)).files
            assert {(file.base, file.key_base) for file in files} == {(str(delta), key)}

    def test_after_checkpoints_and_compaction(self, delta: Path) -> None:
        table = DeltaTable(delta)
        table.create_checkpoint()
        table.optimize.compact()
        (delta / "_delta_log" / f"{0:020d}.json").unlink()  # as log retention does
        write_deltalake(delta, THREE.slice(0, 1), mode="append")
        assert images(str(delta)) == ["0.png", "0.png", "2.png"]

    def test_columns_that_were_added(self, tmp_path: Path) -> None:
        folder = tmp_path / "t"
        write_deltalake(folder, THREE.drop(["kind"]))
        write_deltalake(folder, THREE.slice(0, 1), mode="append", schema_mode="merge")
        kinds = sorted((row["image"], row["kind"] or "") for row in rows(str(folder)))
        assert kinds == [("0.png", ""), ("0.png", "a b"), ("1.png", ""), ("2.png", "")]

    def test_a_table_without_rows(self, tmp_path: Path) -> None:
        folder = tmp_path / "t"
        write_deltalake(folder, THREE)
        DeltaTable(folder).delete()
        with pytest.raises(ManifestError, match="is not a Parquet file, a folder with Parquet"):
            rows(str(folder))

    def test_a_damaged_log(self, delta: Path) -> None:
        for file in (delta / "_delta_log").iterdir():
            file.write_text("no log")
        with pytest.raises(ManifestError, match=r"the Delta table .* cannot be read: "):
            rows(str(delta))

    def test_without_the_reader(self, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "deltalake", None)
        with pytest.raises(
            ManifestError, match=r"format Delta: .*install deltalake \(the extra `delta`\)"
        ):
            rows(str(delta))


@pytest.fixture
def logged(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table of one file of five rows by hand, with what deltalake cannot write."""

    def write(
        features: Sequence[str], dv: Row | None = None, settings: Mapping[str, str] | None = None
    ) -> Path:
        folder = tmp_path / "t"
        (folder / "_delta_log").mkdir(parents=True)
        table = pa.table({"image": list("01234"), "target_prompt": ["x"] * 5})
        pq.write_table(table, folder / "a b.parquet")
        fields = [
            {"name": name, "type": "string", "nullable": True, "metadata": {}}
            for name in table.column_names
        ]
        add = {
            "path": "a%20b.parquet",
            "partitionValues": {},
            "size": (folder / "a b.parquet").stat().st_size,
            "modificationTime": 0,
            "dataChange": True,
            "stats": '{"numRecords": 5}',
        }
        protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
        actions = [
            {"protocol": protocol | dict.fromkeys(("readerFeatures", "writerFeatures"), features)},
            {
                "metaData": {
                    "id": "x",
                    "format": {"provider": "parquet", "options": {}},
                    "schemaString": json.dumps({"type": "struct", "fields": fields}),
                    "partitionColumns": [],
                    "configuration": dict(settings or {}),
                    "createdTime": 0,
                }
            },
            {"add": add | ({} if dv is None else {"deletionVector": dv})},
        ]
        log = folder / "_delta_log" / f"{0:020d}.json"
        log.write_text("\n".join(map(json.dumps, actions)))
        return folder

    return write


class TestDeletionVectorsOfDelta:
    def test_in_a_file(self, logged: Callable[..., Path], store: Store) -> None:
        data, name = roaring([1, 3]), uuid.UUID(int=7)
        dv = {"storageType": "u", "pathOrInlineDv": z85(name.bytes), "offset": 1}
        folder = logged(["deletionVectors"], dv | {"sizeInBytes": len(data), "cardinality": 2})
        framed = struct.pack(">BI", 1, len(data)) + data + struct.pack(">I", zlib.crc32(data))
        (folder / f"deletion_vector_{name}.bin").write_bytes(framed)
        url = put_folder(store, folder, "t")
        assert images(url, store.storage_options) == ["0", "2", "4"]
        assert Manifest.open(url, store.storage_options).rows == 3

    def test_in_the_log(self, logged: Callable[..., Path]) -> None:
        data = roaring([0, 4])
        dv = {"storageType": "i", "pathOrInlineDv": z85(data + bytes(-len(data) % 4))}
        folder = logged(["deletionVectors"], dv | {"sizeInBytes": len(data), "cardinality": 2})
        assert images(str(folder)) == ["1", "2", "3"]

    def test_one_that_is_gone(self, logged: Callable[..., Path]) -> None:
        dv = {"storageType": "u", "pathOrInlineDv": z85(bytes(16)), "offset": 1}
        folder = logged(["deletionVectors"], dv | {"sizeInBytes": 30, "cardinality": 2})
        with pytest.raises(ManifestError, match=r"the Delta table .* cannot be read: "):
            rows(str(folder))

    def test_none_although_the_table_may_have_them(self, logged: Callable[..., Path]) -> None:
        assert len(rows(str(logged(["deletionVectors", "v2Checkpoint"])))) == 5


@pytest.mark.parametrize(
    ("features", "settings", "message"),
    [
        (["columnMapping"], {"delta.columnMapping.mode": "name"}, "[Cc]olumn ?[Mm]apping"),
        (["frobnicate"], {}, "frobnicate"),
        (["variantType"], {}, "uses variantType, which is not read here"),
    ],
)
def test_what_deltas_reader_cannot_do_is_refused(
    logged: Callable[..., Path],
    features: list[str],
    settings: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(ManifestError, match=message):
        rows(str(logged(features, settings=settings)))


@pytest.fixture
def iceberg(tmp_path: Path) -> Callable[..., Table]:
    """Makes a table of pyiceberg 0.12.0 with THREE; it has no version hint."""
    (tmp_path / "ice").mkdir()
    catalog = InMemoryCatalog("c", warehouse=str(tmp_path / "ice"))
    catalog.create_namespace("db")

    def make(**settings: Any) -> Table:
        table = catalog.create_table("db.t", schema=THREE.schema, **settings)
        table.append(THREE)
        return table

    return make


def puffin(data_file: str, dead: Sequence[int]) -> bytes:
    """A Puffin file with one deletion vector (iceberg.apache.org/puffin-spec)."""
    vector = struct.pack(">I", 0xD1D33964) + struct.pack("<qI", 1, 0) + BitMap(dead).serialize()
    blob = struct.pack(">I", len(vector)) + vector + struct.pack(">I", zlib.crc32(vector))
    about = {
        "type": "deletion-vector-v1",
        "fields": [],
        "snapshot-id": -1,
        "sequence-number": -1,
        "offset": 4,
        "length": len(blob),
        "properties": {"referenced-data-file": data_file, "cardinality": str(len(dead))},
    }
    footer = json.dumps({"blobs": [about], "properties": {}}).encode()
    end = struct.pack("<I", len(footer)) + bytes(4) + b"PFA1"
    return b"PFA1" + blob + b"PFA1" + footer + end


class DeletesWriter(ManifestWriterV2):
    """pyiceberg 0.12.0 writes no manifests of deletes itself."""

    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def with_deletes(
    table: Table,
    file: Path,
    place: Path,
    content: DataFileContent = DataFileContent.POSITION_DELETES,
) -> str:
    """The metadata file of the table with one more snapshot, which adds a file of deletes."""
    before, store, number = table.current_snapshot(), table.io, 77
    assert before is not None
    assert before.sequence_number is not None
    deletes = DataFile.from_args(
        content=content,
        file_path=str(file),
        file_format=FileFormat.PUFFIN if file.suffix == ".puffin" else FileFormat.PARQUET,
        partition=Record(),
        record_count=2,
        file_size_in_bytes=file.stat().st_size,
        equality_ids=[1] if content is DataFileContent.EQUALITY_DELETES else None,
    )
    entry = ManifestEntry.from_args(
        status=ManifestEntryStatus.ADDED, snapshot_id=number, data_file=deletes
    )
    output = store.new_output(str(place / "deletes.avro"))
    with DeletesWriter(table.spec(), table.schema(), output, number, "null") as writer:
        writer.add_entry(entry)
    output = store.new_output(str(place / "list.avro"))
    after = before.sequence_number + 1
    with write_manifest_list(2, output, number, before.snapshot_id, after, "null") as written:
        written.add_manifests([*before.manifests(store), writer.to_manifest_file()])
    metadata = json.loads(Path(table.metadata_location).read_text())
    snapshot = {
        "snapshot-id": number,
        "parent-snapshot-id": before.snapshot_id,
        "sequence-number": after,
        "timestamp-ms": before.timestamp_ms + 1,
        "manifest-list": str(place / "list.avro"),
        "summary": {"operation": "delete"},
        "schema-id": 0,
    }
    metadata["snapshots"].append(snapshot)
    metadata |= {"current-snapshot-id": number, "last-sequence-number": after}
    metadata["refs"]["main"]["snapshot-id"] = number
    path = place / "with-deletes.metadata.json"
    path.write_text(json.dumps(metadata))
    return str(path)


class TestIceberg:
    def test_the_live_rows_and_columns(self, iceberg: Callable[..., Table]) -> None:
        table = iceberg()
        table.delete("image = '1.png'")
        with table.update_schema() as change:
            change.rename_column("kind", "sort")
            change.add_column("extra", LongType())
        with table.update_schema() as change:
            change.delete_column("extra")
        with table.update_schema() as change:
            change.add_column("kind", LongType())  # the name of a column that was text
        new = {"image": ["3.png"], "target_prompt": ["x"], "sort": ["s"], "kind": [5]}
        table.append(pa.table(new))
        right = sorted(table.scan().to_arrow().to_pylist(), key=lambda row: row["image"])
        found = sorted(rows(table.metadata_location), key=lambda row: row["image"])
        assert found == right
        assert [row["sort"] for row in found] == ["a b", None, "s"]
        assert [row["kind"] for row in found] == [None, None, 5]

    def test_a_folder_whose_catalog_is_elsewhere(self, iceberg: Callable[..., Table]) -> None:
        table = iceberg()
        for url in (
            table.location(),
            f"{table.location()}/data",
            f"{table.location()}/*/*.parquet",
        ):
            with pytest.raises(ManifestError) as caught:
                rows(url)
            assert f"the newest one here is {table.metadata_location})" in str(caught.value)

    def test_a_folder_with_a_hint(self, iceberg: Callable[..., Table]) -> None:
        """Hadoop's catalog names files v<n>.metadata.json (Iceberg 1.9, HadoopTableOperations)."""
        table = iceberg()
        old = Path(table.metadata_location)
        table.overwrite(THREE.slice(0, 1))
        new, place = Path(table.metadata_location), old.parent
        old.rename(place / "v1.metadata.json")
        (place / "version-hint.text").write_text("1")
        assert len(rows(table.location())) == 3
        new.rename(place / "v2.metadata.json")
        assert images(table.location()) == ["0.png"], "the hint is late"
        (place / "version-hint.text").write_text("2\n")
        assert images(table.location()) == ["0.png"]
        assert images(f"{table.location()}/data") == ["0.png"]
        assert images(f"{place.parent.parent}/**/*.parquet") == ["0.png"]

    def test_partitions_by_value(self, iceberg: Callable[..., Table]) -> None:
        table = iceberg()
        with table.update_spec() as change:
            change.add_identity("kind")
        table.append(THREE)
        found = sorted(rows(table.metadata_location), key=lambda row: row["image"])
        assert found == [row for row in THREE.to_pylist() for _ in range(2)]

    def test_a_field_of_a_struct_that_was_renamed(self, tmp_path: Path) -> None:
        (tmp_path / "w").mkdir()
        catalog = InMemoryCatalog("c", warehouse=str(tmp_path / "w"))
        catalog.create_namespace("db")
        data = THREE.append_column("box", pa.array([{"w": 1}] * 3))
        table = catalog.create_table("db.t", schema=data.schema)
        table.append(data)
        assert [row["box"] for row in rows(table.metadata_location)] == [{"w": 1}] * 3
        with table.update_schema() as change:
            change.rename_column(("box", "w"), "width")
        with pytest.raises(ManifestError, match=r"the field \.width inside of a column was"):
            rows(table.metadata_location)

    @pytest.mark.parametrize("is_vector", [False, True], ids=["delete file", "deletion vector"])
    def test_deletes_apart_from_the_data(
        self, iceberg: Callable[..., Table], tmp_path: Path, *, is_vector: bool
    ) -> None:
        """Merge-on-read: what Spark 3.5 writes with write.delete.mode, and Athena always."""
        table = iceberg(properties={"format-version": "2"})
        (task,) = table.scan().plan_files()
        data = task.file.file_path
        if is_vector:
            file = tmp_path / "deletes.puffin"
            file.write_bytes(puffin(data, [0, 2]))
        else:
            file = tmp_path / "deletes.parquet"
            others = pa.table({"file_path": [data, "other", data], "pos": [2, 1, 0]})
            pq.write_table(others, file)
        metadata = with_deletes(table, file, tmp_path)
        assert images(metadata) == ["1.png"]
        assert Manifest.open(metadata).rows == 1
        assert images(table.metadata_location) == ["0.png", "1.png", "2.png"]

    def test_deletes_by_value(self, iceberg: Callable[..., Table], tmp_path: Path) -> None:
        table = iceberg(properties={"format-version": "2"})
        file = tmp_path / "equality.parquet"
        pq.write_table(pa.table({"image": ["1.png"]}), file)
        metadata = with_deletes(table, file, tmp_path, DataFileContent.EQUALITY_DELETES)
        with pytest.raises(ManifestError, match=r"equality deletes.*rewrite the table's data"):
            rows(metadata)

    def test_a_damaged_metadata_file(self, tmp_path: Path) -> None:
        file = tmp_path / "metadata" / "v1.metadata.json"
        file.parent.mkdir()
        file.write_text("{}")
        with pytest.raises(ManifestError, match=r"the Iceberg table of .* cannot be read: "):
            rows(str(file))

    def test_without_the_reader(
        self, iceberg: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = iceberg().metadata_location
        monkeypatch.setitem(sys.modules, "pyiceberg", None)
        with pytest.raises(ManifestError, match=r"install pyiceberg \(the extra `iceberg`\)"):
            rows(url)


@pytest.mark.parametrize(
    ("mark", "name"),
    [
        (".hoodie/hoodie.properties", "Hudi"),
        ("_spark_metadata/0", "Spark streaming"),
        ("snapshot/LATEST", "Paimon"),
    ],
)
def test_other_formats_are_refused(store: Store, mark: str, name: str) -> None:
    store.put_table("data/t/day=1/m.parquet", {"image": ["a"], "target_prompt": ["x"]})
    assert images(store.url("data"), store.storage_options) == ["a"]
    store.put(f"data/t/{mark}", b"1")
    for url in ("data", "data/t", "data/t/day=1", "data/*/*/*.parquet", "data/**/*.parquet"):
        with pytest.raises(ManifestError, match=rf"/data/t is the folder of a {name} table"):
            images(store.url(url), store.storage_options)


def test_a_file_of_a_ducklake_is_refused(store: Store) -> None:
    """DuckDB 1.4 gives data files of DuckLake this name; its catalog is elsewhere."""
    row = {"image": ["a"], "target_prompt": ["x"]}
    url = store.put_table("main/t/ducklake-0199b1f0-7c1f.parquet", row)
    with pytest.raises(ManifestError, match="is a file of a DuckLake"):
        images(url, store.storage_options)

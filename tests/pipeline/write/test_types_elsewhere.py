"""Every type that a manifest may have is carried, and every library reads what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import JobError
from pipeline.job.job import Job
from pipeline.verify.verify import verify_run
from tests.builders.finished_run import make_edits
from tests.builders.parquet_types import KINDS, array_of, at_every_depth, mark_column

ROWS = 4
Write = Callable[..., Path]
Load = Callable[[Path], datasets.Dataset]


@pytest.fixture
def write(
    tmp_path: Path, picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]
) -> Write:
    """write(columns, name="m.parquet", **settings): a manifest of four rows."""

    def write(columns: dict[str, Any], name: str = "m.parquet", **settings: Any) -> Path:
        first = next(iter(columns.values())) if columns else [None] * ROWS
        base = {
            "image": [png(picture(number)) for number in range(len(first))],
            "target_prompt": ["a red cat"] * len(first),
            "id": [f"{name}-{number}" for number in range(len(first))],
        }
        pq.write_table(pa.table(base | columns), tmp_path / name, **settings)
        return tmp_path / name

    return write


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """run(manifest, **sections): the run folder of a job that edits nothing; it is verified."""

    def run(manifest: Path | str, **sections: Any) -> Path:
        values = {
            "manifest": str(manifest),
            "output": str(tmp_path / "out"),
            "editor": "none",
            "edit": {"size_px": 64},
        }
        job = Job.model_validate(values | sections)
        make_edits(job, groups_per_block=3)
        found = verify_run(job)
        assert (found.ok, found.failed) == (True, 0)
        return Path(job.output)

    return run


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(out: Path) -> datasets.Dataset:
        found = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
        ids = found["id"][:]
        return found.select(sorted(range(len(ids)), key=lambda place: ids[place]))

    return load


def in_order(out: Path) -> pa.Table:
    files = sorted(out.glob("part-*/metadata.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]).sort_by("id")


@pytest.mark.parametrize("name", KINDS)
def test_a_type_at_every_depth_is_loaded_by_every_library(
    name: str, write: Write, run: Callable[..., Path], load: Load
) -> None:
    """Columns of every type that is let through, alone and in lists and structs. Read with datasets
    5.2, pandas 3.1, pyarrow 26 and DuckDB 2.0."""
    columns, arrays = dict(at_every_depth(KINDS[name])), {}
    for depth, each in columns.items():
        try:
            arrays[depth] = array_of(each.type, each.values)
            pq.write_table(pa.table({"x": arrays[depth]}), pa.BufferOutputStream())
        except pa.ArrowNotImplementedError:  # views and extension types inside others
            arrays.pop(depth, None)
    assert "alone" in arrays
    out = run(write(arrays))
    table, loaded = in_order(out), load(out)
    for depth in arrays:
        each = columns[depth]
        assert table.schema.field(depth).type == each.becomes
        expected = pa.array(each.carried, each.becomes).to_pylist()
        assert table[depth].to_pylist() == expected
        assert loaded[depth][:] == expected
    for file in out.glob("part-*/metadata.parquet"):
        assert len(pd.read_parquet(file)) == pq.read_metadata(file).num_rows
    names = ", ".join(arrays)
    rows = duckdb.sql(f"select {names} from read_parquet('{out}/part-*/metadata.parquet')")
    assert len(rows.fetchall()) == ROWS


def test_enum_is_text(write: Write, run: Callable[..., Path], load: Load) -> None:
    """parquet-format's ENUM, as parquet-avro writes enums; pyarrow 26 reads bytes."""
    path = write({"mood": ["sad", None, "happy", "sad"]}, store_schema=False, use_dictionary=False)
    mark_column(path, "mood", "ENUM")
    assert pa.types.is_binary(pq.read_schema(path).field("mood").type)
    prompts = {"target": "a {mood} cat"}
    out = run(path, prompts={**prompts, "labels": {"mood": ["sad", "calm"]}})
    assert in_order(out)["source_mood"].to_pylist() == ["sad", None, None, "happy", "happy", "sad"]
    assert load(out)["target_prompt"][0] == "a calm cat"


def test_what_duckdb_writes(
    tmp_path: Path, write: Write, run: Callable[..., Path], load: Load
) -> None:
    """DuckDB 2.0: UUID, INTERVAL, JSON, decimals, unsigned hashes and HUGEINT as double."""
    source = write({})
    duckdb.sql(
        f"copy (select image, 'x' as target_prompt, id, "
        "'00010203-0405-0607-0809-0a0b0c0d0e0f'::UUID as uid, "
        "INTERVAL '14 months 3 days 1.5 seconds' as span, INTERVAL 0 days as nothing, "
        "'{\"a\": 1}'::JSON as info, hash(id) as hashed, 7.5 as guidance_scale, 3::HUGEINT as n, "
        "[uuid()] as uids, 'a'::ENUM('a', 'b') as mood, {'span': INTERVAL 2 days} as inner "
        f"from read_parquet('{source}')) to '{tmp_path}/duck.parquet'"
    )
    out = run(tmp_path / "duck.parquet")
    loaded = load(out)
    assert loaded["uid"][0] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert (loaded["span"][0], loaded["nothing"][0]) == ("P14M3DT1.5S", "PT0S")
    assert loaded["inner"][0] == {"span": "P2D"}
    hashes = duckdb.sql(f"select hash(id) from read_parquet('{source}') order by id").fetchall()
    assert [int(value) for value in loaded["hashed"][:]] == [value for (value,) in hashes]
    assert any(value >= 2**63 for (value,) in hashes)


def test_image_names_in_structs_are_renamed(
    write: Write, run: Callable[..., Path], load: Load
) -> None:
    """datasets makes an image of every text field x_file_name, at any depth."""
    columns = {
        "camera": [{"raw_file_name": "IMG_1.CR2", "raw_path": "x", "lens": "35 mm"}] * ROWS,
        "shots": [[{"mask_file_name": "m.png", "file_name": "a"}]] * ROWS,
        "deep": [{"a": [{"file_names": ["p", "q"]}]}] * ROWS,
        "taken": [{"x_file_name": "a", "manifest_x_file_path": "b"}] * ROWS,
        "sizes": [{"x_file_name": 3}] * ROWS,
    }
    loaded = load(run(write(columns)))
    assert loaded[0]["camera"] == {
        "manifest_raw_file_path": "IMG_1.CR2",
        "raw_path": "x",
        "lens": "35 mm",
    }
    assert loaded[0]["shots"] == [{"manifest_mask_file_path": "m.png", "manifest_file_path": "a"}]
    assert loaded[0]["deep"] == {"a": [{"manifest_file_path": ["p", "q"]}]}
    assert loaded[0]["taken"] == {"manifest_manifest_x_file_path": "a", "manifest_x_file_path": "b"}
    assert loaded[0]["sizes"] == {"x_file_name": 3}


CLASSES = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture
def hugging_face(
    tmp_path: Path, picture: Callable[..., Image.Image]
) -> Callable[..., tuple[Path, datasets.Features]]:
    """hugging_face(columns, features, name="hf.parquet"): as `datasets` writes it."""

    def write(
        columns: dict[str, Any], features: dict[str, Any], name: str = "hf.parquet"
    ) -> tuple[Path, datasets.Features]:
        for number in range(3):
            picture(number).save(tmp_path / f"{number}.png")
        rows = len(next(iter(columns.values())))
        base = {"image": [str(tmp_path / f"{n % 3}.png") for n in range(rows)]}
        base |= {"target_prompt": ["x"] * rows, "id": [f"{name}{n}" for n in range(rows)]}
        own = {"image": datasets.Image(), "target_prompt": datasets.Value("string")}
        every = datasets.Features({**own, "id": datasets.Value("string"), **features})
        made = datasets.Dataset.from_dict(base | columns, features=every)
        made.to_parquet(str(tmp_path / name))
        (tmp_path / "gone.png").unlink(missing_ok=True)
        return tmp_path / name, every

    return write


def test_class_labels_come_back_at_every_depth(
    hugging_face: Callable[..., tuple[Path, datasets.Features]],
    run: Callable[..., Path],
    load: Load,
) -> None:
    """datasets.ClassLabel is in the schema metadata only (datasets 5.2, key huggingface)."""
    columns = {
        "label": [0, 1, -1, None],
        "labels": [[0, 1], [], None, [1]],
        "pair": [[0, 1]] * 4,
        "objects": [[{"kind": 1, "box": [1.0, 2.0, 3.0, 4.0]}], [], None, []],
        "one": [{"kind": 0, "raw_file_name": "a.CR2", "at": None}] * 4,
    }
    features = {
        "label": CLASSES,
        "labels": datasets.List(CLASSES),
        "pair": datasets.List(CLASSES, length=2),
        "objects": datasets.List(
            {"kind": CLASSES, "box": datasets.List(datasets.Value("float32"), length=4)}
        ),
        "one": {
            "kind": CLASSES,
            "raw_file_name": datasets.Value("string"),
            "at": datasets.Value("timestamp[us]"),
        },
    }
    path, every = hugging_face(columns, features)
    loaded = load(run(path))
    for name in ("label", "labels", "pair", "objects"):
        assert loaded.features[name] == every[name]
        assert loaded[name][:] == columns[name]
    assert loaded.features["one"]["kind"] == CLASSES
    assert loaded[0]["one"] == {"kind": 0, "manifest_raw_file_path": "a.CR2", "at": None}


def test_carried_images_come_back_as_images(
    tmp_path: Path,
    hugging_face: Callable[..., tuple[Path, datasets.Features]],
    run: Callable[..., Path],
    load: Load,
) -> None:
    names = [str(tmp_path / f"{number}.png") for number in range(3)]
    columns = {
        "depth": [names[0], None, {"bytes": b"no image", "path": "x.png"}],
        "views": [names[:2], None, []],
        "gone": [str(tmp_path / "gone.png"), str(tmp_path / "secret"), None],
    }
    (tmp_path / "secret").write_text("not an image: it must not be copied into the output")
    Image.new("RGB", (8, 8)).save(tmp_path / "gone.png")  # until the manifest is written
    features = {
        "depth": datasets.Image(),
        "views": datasets.List(datasets.Image()),
        "gone": datasets.Image(),
    }
    path, every = hugging_face(columns, features)
    out = run(path)
    loaded = load(out)
    for name in features:
        assert loaded.features[name] == every[name]
    with Image.open(names[0]) as expected:
        assert loaded[0]["depth"].tobytes() == expected.tobytes()
    assert [len(each) for each in loaded["views"][:]] == [2, 0, 0]
    assert loaded[1]["depth"] is None
    assert loaded["depth_path"][:] == [names[0], None, "x.png"]
    assert loaded["views_paths"][0] == names[:2]
    raw = loaded.cast_column("depth", datasets.Image(decode=False))
    assert Path(raw[2]["depth"]["path"]).read_bytes() == b"no image"
    assert loaded["gone"][:] == [None] * 3
    assert loaded["gone_path"][:] == columns["gone"]


def test_labels_of_classes_are_classes(
    hugging_face: Callable[..., tuple[Path, datasets.Features]],
    run: Callable[..., Path],
    load: Load,
) -> None:
    path, _ = hugging_face({"label": [0, 1]}, {"label": CLASSES})
    prompts = {"target": "a {label}", "labels": {"label": ["cat", "dog"]}}
    loaded = load(run(path, prompts=prompts))
    assert loaded["target_prompt"][:] == ["a dog", "a cat"]
    assert loaded.features["label"] == loaded.features["source_label"] == CLASSES
    assert (loaded["label"][:], loaded["source_label"][:]) == ([1, 0], [0, 1])


def test_a_run_goes_on_with_another_type_of_text(
    tmp_path: Path, write: Write, run: Callable[..., Path]
) -> None:
    """pandas 3 writes large_string, pyarrow string, Delta and DataFusion views."""
    kinds = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ]
    for number, kind in enumerate(kinds):
        array = pa.array([f"n{number}"], kind)
        lists = pa.array([[f"n{number}"]], pa.list_(pa.large_string() if number else pa.string()))
        write({"note": array, "notes": lists}, f"m{number}.parquet")
        out = run([str(tmp_path / f"m{n}.parquet") for n in range(number + 1)][-1])
    files = out.glob("part-*/metadata.parquet")
    schemas = {pq.read_schema(file).remove_metadata().to_string() for file in files}
    assert len(schemas) == 1
    assert sorted(in_order(out)["note"].to_pylist()) == [f"n{n}" for n in range(len(kinds))]


def test_a_run_folder_of_an_earlier_release_goes_on_with_its_types(
    tmp_path: Path,
    hugging_face: Callable[..., tuple[Path, datasets.Features]],
    run: Callable[..., Path],
) -> None:
    """Earlier releases carried UUIDs as bytes, images as structs, and labels of classes as text."""
    columns = {"label": [0, 1], "depth": [str(tmp_path / "0.png"), None]}
    path, _ = hugging_face(columns, {"label": CLASSES, "depth": datasets.Image()})
    table = pq.read_table(path)
    table = table.append_column("uid", array_of(pa.uuid(), [b"\x01" * 16, None]))
    table = table.append_column("note", pa.array(["n", None], pa.string_view()))
    pq.write_table(table, path)
    prompts = {"target": "a {label}", "labels": {"label": ["cat", "dog"]}}
    recorded = run(path, prompts=prompts).joinpath(".metadata-schema").read_bytes()
    new = pa.ipc.read_schema(pa.py_buffer(recorded))
    before = {
        "label": pa.string(),
        "uid": pa.binary(16),
        "note": pa.large_string(),
        "depth_file_name": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    }
    fields = [item.with_type(before.get(item.name, item.type)) for item in new]
    names = {"depth_file_name": "depth"}
    fields = [
        item.with_name(names.get(item.name, item.name))
        for item in fields
        if item.name != "depth_path"
    ]
    old = tmp_path / "old"
    old.mkdir()
    old.joinpath(".metadata-schema").write_bytes(pa.schema(fields).serialize().to_pybytes())
    found = in_order(run(path, prompts=prompts, output=str(old)))
    assert found.schema.remove_metadata() == pa.schema(fields)
    assert found["label"].to_pylist() == ["dog", "cat"]
    assert found["source_label"].to_pylist() == [0, 1]
    assert found["uid"].to_pylist() == [b"\x01" * 16, None]
    assert found["depth"].to_pylist() == [{"bytes": None, "path": columns["depth"][0]}, None]


def test_a_run_folder_keeps_its_classes(
    hugging_face: Callable[..., tuple[Path, datasets.Features]], run: Callable[..., Path]
) -> None:
    path, _ = hugging_face({"label": [0]}, {"label": CLASSES}, "a.parquet")
    run(path)
    more = datasets.ClassLabel(names=["cat", "dog", "bird"])
    path, _ = hugging_face({"label": [2]}, {"label": more}, "b.parquet")
    with pytest.raises(JobError, match=r"label: int64 with classes \['cat', 'dog', 'bird'\]"):
        run(path)

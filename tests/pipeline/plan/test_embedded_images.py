"""Images that lie in the manifest: the work list leaves them there, and readers get each once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.job.job import Job
from pipeline.ledger.outcome import FailureCode
from pipeline.plan.embedded_images import PROBLEM_FIELD, embedded_of, read_run, runs_of
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.work_list import WorkSlice, cut_work
from pipeline.read.decode import DecodeSettings, decode
from pipeline.storage.folder import Folder
from tests.builders.delta_vectors import roaring, z85
from tests.servers.s3_gate import Gate
from tests.servers.stores import Store

IMAGE_BYTES = 20_000
MakeJob = Callable[..., Job]


def an_image(number: int, size: int = IMAGE_BYTES) -> bytes:
    """Bytes that look like a JPEG with EXIF, and do not compress."""
    return b"\xff\xd8\xff\xe1Exif" + np.random.default_rng(number).bytes(size)


@pytest.fixture
def make_job(store: Store) -> MakeJob:
    def make(table: pa.Table, settings: dict[str, Any] | None = None, **sections: Any) -> Job:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **(settings or {}))
        values = {
            "manifest": store.put("manifest.parquet", sink.getvalue().to_pybytes()),
            "output": store.url("run"),
            "storage_options": store.storage_options,
            "editor": "none",
            "edit": {"size_px": 64},
        }
        return Job.model_validate(values | sections)

    return make


def blocks_of(job: Job, plan: Plan, groups_per_block: int = 4) -> Iterator[pa.Table]:
    folder = Folder.open(job.output, job.storage_options)
    slices = cut_work(folder, plan.work_files, groups_per_block, 1000)
    for run in runs_of(slices, plan.embedded):
        yield from read_run(folder, run, embedded_of(run, plan.embedded))


def rows_of(job: Job, plan: Plan, groups_per_block: int = 4) -> list[dict[str, Any]]:
    return [row for block in blocks_of(job, plan, groups_per_block) for row in block.to_pylist()]


def plain(rows: int) -> dict[str, Any]:
    return {
        "image": [{"bytes": an_image(n), "path": f"{n}.jpg"} for n in range(rows)],
        "target_prompt": [["x", "y"]] * rows,
    }


@pytest.mark.parametrize(
    ("row_group_size", "groups_per_block"), [(1, 4), (3, 1), (7, 4), (7, 100), (1000, 4)]
)
def test_readers_get_the_bytes_that_were_planned(
    make_job: MakeJob, store: Store, row_group_size: int, groups_per_block: int
) -> None:
    job = make_job(pa.table(plain(20)), {"row_group_size": row_group_size})
    plan = make_plan(job)
    rows = rows_of(job, plan, groups_per_block)
    assert [row["row"] for row in rows] == list(range(20))
    assert [row["image_bytes"] for row in rows] == [an_image(n) for n in range(20)]
    assert not any(row["problem"] for row in rows)
    written = b"".join(store.raw("run/.plan").values())
    assert b"Exif" not in written
    assert len(written) < 20_000


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_plan_writes_few_bytes_an_edit(make_job: MakeJob, store: Store) -> None:
    rows = 300
    job = make_job(pa.table(plain(rows)), prompts={"target": "snow"})
    make_plan(job)
    assert sum(map(len, store.raw("run/.plan").values())) <= 200 * rows


def test_masks_and_carried_images_stay_in_the_manifest_too(
    make_job: MakeJob, store: Store, tiny_checkpoint: Path
) -> None:
    """Of every kind in which cells can have bytes, beside rows that have URIs instead."""
    rows = 9
    has_bytes = [n % 3 != 1 for n in range(rows)]

    def cells(shift: int) -> list[dict[str, Any]]:
        return [
            {"bytes": an_image(n + shift), "path": f"{n}.jpg"}
            if has_bytes[n]
            else {"bytes": None, "path": f"{n}-{shift}.jpg"}
            for n in range(rows)
        ]

    table = pa.table(
        {
            "image": cells(0),
            "target_prompt": ["x"] * rows,
            "mask": [[cell] for cell in cells(100)],
            "depth": cells(200),
            "views": [[cell, None] for cell in cells(300)],
            "raw": [an_image(n + 400) if n % 2 else None for n in range(rows)],
            "note": [str(n) for n in range(rows)],
        }
    )
    images = {"depth": {"_type": "Image"}, "views": [{"_type": "Image"}]}
    features = {"info": {"features": images}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    job = make_job(
        table,
        {"row_group_size": 4},
        editor="fpe",
        model={"checkpoint": str(tiny_checkpoint)},
        annotations={"masks": {"column": "mask"}},
    )
    plan = make_plan(job)
    found = rows_of(job, plan)
    assert b"Exif" not in b"".join(store.raw("run/.plan").values())
    for n, row in enumerate(found):
        there = has_bytes[n]
        assert row["image_bytes"] == (an_image(n) if there else None)
        assert row["uri"] == ("" if there else store.url(f"{n}-0.jpg"))
        (mask,) = row["masks"]
        assert mask["bytes"] == (an_image(n + 100) if there else None)
        assert mask["uri"] == ("" if there else store.url(f"{n}-100.jpg"))
        carried = row["carried"]
        assert carried["note"] == str(n)
        assert carried["raw"] == (an_image(n + 400) if n % 2 else None)
        (view, nothing) = carried["views"]
        assert nothing is None
        for image, shift in ((carried["depth"], 200), (view, 300)):
            assert image["bytes"] == (an_image(n + shift) if there else None)
            assert image["fpe_uri"] == (None if there else store.url(f"{n}-{shift}.jpg"))


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_rows_without_images_in_the_manifest_are_read_as_before(make_job: MakeJob) -> None:
    job = make_job(pa.table({"image": ["a.png"] * 9, "target_prompt": ["x"] * 9}))
    plan = make_plan(job)
    assert plan.embedded is None
    assert [len(block) for block in blocks_of(job, plan)] == [4, 4, 1]


def test_what_is_done_is_not_read(gate: Gate) -> None:
    """Of row groups without a row that is left nothing is fetched."""
    rows = 64
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(plain(rows)), sink, row_group_size=4)
    data = sink.getvalue().to_pybytes()
    gate.behind.put("run/m.parquet", data)
    folder = gate.folder()
    job = Job.model_validate(
        {
            "manifest": folder.url_of("m.parquet"),
            "output": folder.url_of("out"),
            "storage_options": dict(folder.options),
            "editor": "none",
            "edit": {"size_px": 64},
        }
    )
    whole = make_plan(job)
    first = rows_of(job, whole, 1000)
    wanted = {edit["edit_id"] for row in first[32:36] for edit in row["edits"]}
    plan = make_plan(job, only=wanted)
    gate.bytes_read = 0
    assert [row["row"] for row in rows_of(job, plan)] == [32, 33, 34, 35]
    assert gate.bytes_read < len(data) / 4


@pytest.mark.parametrize("row_group_size", [None, 100, 10])
def test_a_pass_over_the_images_costs_the_size_of_the_manifest(
    gate: Gate, row_group_size: int | None
) -> None:
    rows = 600
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(plain(rows)), sink, row_group_size=row_group_size)
    data = sink.getvalue().to_pybytes()
    gate.behind.put("run/m.parquet", data)
    folder = gate.folder()
    job = Job.model_validate(
        {
            "manifest": folder.url_of("m.parquet"),
            "output": folder.url_of("out"),
            "storage_options": dict(folder.options),
            "editor": "none",
            "edit": {"size_px": 64},
        }
    )
    plan = make_plan(job)
    gate.bytes_read = 0
    gate.tries.clear()
    assert sum(len(block) for block in blocks_of(job, plan, 64)) == rows
    assert gate.bytes_read <= 1.2 * len(data)
    assert gate.tries["GET"] <= 80


def slices_of(sizes: list[int]) -> list[WorkSlice]:
    firsts = np.cumsum([0, *sizes])
    return [
        WorkSlice("w", int(first), size, (int(first), int(first) + size - 1))
        for first, size in zip(firsts[:-1], sizes, strict=True)
    ]


@pytest.mark.parametrize("store", ["local"], indirect=True)
@pytest.mark.parametrize(
    ("row_group_size", "runs"),
    [
        (1000, [10]),  # all in one row group
        (64, [1] * 10),  # a run ends where a row group ends
        (128, [2] * 5),
        (32, [1] * 10),
        (100, [10]),  # small beside the run only when it has more than 800 rows
        (10, [2, 1, 2, 2, 1, 2]),  # a run of 8 row groups may end within one
    ],
)
def test_slices_that_share_a_row_group_are_read_by_one_task(
    make_job: MakeJob, row_group_size: int, runs: list[int]
) -> None:
    rows = 640
    cells = [{"bytes": an_image(n, 100), "path": ""} for n in range(rows)]
    table = pa.table({"image": cells, "target_prompt": ["x"] * rows})
    plan = make_plan(make_job(table, {"row_group_size": row_group_size}))
    slices = slices_of([64] * 10)
    found = runs_of(slices, plan.embedded)
    assert [part for run in found for part in run] == slices
    assert [len(run) for run in found] == runs


def changed(make_job: MakeJob, store: Store, change: str) -> tuple[Job, Plan]:
    job = make_job(pa.table(plain(8)), {"row_group_size": 4})
    plan = make_plan(job)
    if change == "gone":
        folder = store.folder()
        folder.fs.rm(folder.path_of("manifest.parquet"))
    elif change == "other rows":
        make_job(pa.table(plain(9)).slice(1), {"row_group_size": 4})
    else:
        store.put("manifest.parquet", b"no table")
    return job, plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("gone", "is not there for this worker"),
        ("other rows", "was written again since the work was planned"),
        ("damaged", "was written again since the work was planned"),
    ],
)
def test_a_manifest_that_changed_costs_its_rows_and_names_the_file(
    make_job: MakeJob, store: Store, change: str, message: str
) -> None:
    job, plan = changed(make_job, store, change)
    for block in blocks_of(job, plan):
        assert block["image_bytes"].null_count == len(block)
        decoded = decode(block, DecodeSettings()).to_pylist()
        assert PROBLEM_FIELD.name not in decoded[0]
        for row in decoded:
            assert row["failure"] == FailureCode.SOURCE_MISSING
            assert f"manifest.parquet {message}" in row["message"]
            assert f"row {row['row']} of the manifest" in row["message"]


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_another_image_in_a_row_is_not_taken_for_the_one_that_was_planned(
    make_job: MakeJob, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the file looks the same, its size and its version too."""
    job = make_job(pa.table(plain(8)))
    plan = make_plan(job)
    others = plain(8)
    others["image"][3] = {"bytes": an_image(99), "path": "3.jpg"}
    make_job(pa.table(others))
    monkeypatch.setattr(
        "pipeline.manifest.embedded._version_of",
        lambda file, _: next((e.size, e.version) for e in plan.embedded.files if e.file is file),  # type: ignore[union-attr]
    )
    folder = Folder.open(job.output, job.storage_options)
    slices = cut_work(folder, plan.work_files, 4, 1000)
    rows = [r for b in read_run(folder, tuple(slices), plan.embedded) for r in b.to_pylist()]
    assert [row["image_bytes"] for row in rows] == [
        None if n == 3 else an_image(n) for n in range(8)
    ]
    assert "row 3 of the manifest: it has another image now" in rows[3]["problem"]


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_files_of_a_manifest_and_rows_that_are_deleted_keep_their_numbers(
    tmp_path: Path, make_job: MakeJob
) -> None:
    """A Delta table of two files; rows 1 and 8 of the first one are deleted by a vector, which is
    put into the log by hand (deltalake 1.6 writes none)."""
    deltalake = pytest.importorskip("deltalake")
    table = tmp_path / "table"
    for start in (0, 10):
        part = pa.table(plain(10 + start)).slice(start)
        deltalake.write_deltalake(str(table), part, mode="append")
    log = table / "_delta_log" / f"{0:020d}.json"
    data = roaring([1, 8])
    vector = {"storageType": "i", "pathOrInlineDv": z85(data + bytes(-len(data) % 4))}
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        if "protocol" in action:
            versions = {"minReaderVersion": 3, "minWriterVersion": 7}
            features = ["deletionVectors"]
            action["protocol"] = versions | {"readerFeatures": features, "writerFeatures": features}
        elif "add" in action:
            action["add"]["deletionVector"] = vector | {"sizeInBytes": len(data), "cardinality": 2}
    log.write_text("\n".join(map(json.dumps, actions)))
    job = make_job(
        pa.table({"image": ["a"], "target_prompt": ["x"]}),
        manifest=str(table),
        storage_options={},
        output=str(tmp_path / "run"),
    )
    plan = make_plan(job)
    found = sorted(row["image_bytes"] for row in rows_of(job, plan))
    assert found == sorted(an_image(n) for n in range(20) if n not in (1, 8))


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_small_picture_comes_through_decoding(make_job: MakeJob) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (70, 70), (1, 2, 3)).save(sink, "PNG")
    job = make_job(pa.table({"image": [sink.getvalue()] * 3, "target_prompt": ["x"] * 3}))
    (block,) = blocks_of(job, make_plan(job))
    rows = decode(block, DecodeSettings()).to_pylist()
    assert [row["failure"] for row in rows] == [""] * 3
    assert {row["pixels"] for row in rows} == {bytes((1, 2, 3)) * 64 * 64}

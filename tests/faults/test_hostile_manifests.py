"""Manifests that are damaged or not what they seem: rows, or one error that names the file."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fpe_core import EditParameters
from pipeline.errors import JobError, ManifestError
from pipeline.job.job import Job
from pipeline.manifest.columns import KNOWN_COLUMNS
from pipeline.manifest.files import Manifest
from pipeline.plan.ids import EditContext
from pipeline.plan.resolved_job import ResolvedJob
from pipeline.plan.survey import survey_manifest
from pipeline.plan.work_list import pending_batches, work_files, work_schema
from tests.builders.hostile_texts import hostile_text
from tests.builders.mutations import mutated
from tests.faults.fuzz import DEFAULT_CASES, SHARES, cases, planned

Chance = np.random.Generator


def plan_rows(path: Path, target: str = "") -> int:
    """Everything that planning does with a manifest's rows; returns how many edits it makes."""
    values: dict[str, Any] = {"manifest": str(path), "output": str(path.parent / "run")}
    if target:
        values["prompts"] = {"target": target}
    job = Job.model_validate(values)
    prompts = None if job.prompts is None else job.prompts.to_plan()
    manifest = Manifest.open(str(path), needs_target_prompt=prompts is None)
    resolved = ResolvedJob(
        job,
        manifest,
        EditParameters(),
        EditParameters(),
        EditContext("fingerprint", "crop"),
        prompts,
    )
    edits = sum(1 for _ in resolved.edit_ids())
    survey = survey_manifest(resolved)
    batches = pending_batches(resolved, frozenset(), survey.repeats)
    files = work_files(batches, work_schema(resolved.carried_schema))
    written = [pq.read_table(io.BytesIO(data)) for data in files]
    assert sum(len(row) for table in written for row in table["edits"]) == edits
    return edits


def refusal_of(path: Path, target: str = "") -> str:
    """What planning complains of, "" for nothing; any other error is the test's."""
    try:
        plan_rows(path, target)
    except (JobError, ManifestError) as error:
        return str(error)
    return ""


def sound_manifests() -> list[bytes]:
    """Small manifests in several writings."""
    rows = 60
    columns = {
        "image": [f"{n}.png" for n in range(rows)],
        "target_prompt": [["a red cat", "a dog"], ["x"], ["y"]] * (rows // 3),
        "id": [f"id-{n}" for n in range(rows)],
        "seed": [None, 1, 2] * (rows // 3),
        "score": [0.5, None, 1.0] * (rows // 3),
        "boxes": [[[1, 2], []], None, [[3]]] * (rows // 3),
    }
    cells = [{"bytes": bytes([n]) * 50, "path": f"{n}.png"} for n in range(rows)]
    with_bytes = {"image": cells, "target_prompt": ["x"] * rows}
    writings: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        (columns, {"compression": "none", "store_schema": False}),
        (columns, {"compression": "snappy", "row_group_size": 20}),
        (columns, {"compression": "zstd", "use_dictionary": False, "store_schema": False}),
        (columns, {"version": "1.0", "data_page_version": "2.0", "store_schema": False}),
        (with_bytes, {"compression": "none", "store_schema": False}),
    )
    manifests = []
    for content, settings in writings:
        sink = io.BytesIO()
        pq.write_table(pa.table(content), sink, **settings)
        manifests.append(sink.getvalue())
    return manifests


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A gigabyte to come: Arrow believes the sizes of pages, and a few bytes can ask for two."""
    usual = resource.getrlimit(resource.RLIMIT_AS)
    taken = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), usual[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, usual)


@pytest.mark.usefixtures("little_memory")
def test_damaged_bytes_are_rows_or_an_error_that_names_the_file(tmp_path: Path) -> None:
    sound = sound_manifests()
    path = tmp_path / "manifest.parquet"
    refused = passed = 0
    for number, chance in cases("manifest bytes"):
        data = sound[number % len(sound)]
        if chance.random() < 0.5:  # behind the magic bytes of the end and the length of the footer
            damaged = mutated(data[:-8], chance) + data[-8:]
        else:
            damaged = mutated(data, chance)
        path.write_bytes(damaged)
        refusal = refusal_of(path)
        assert not refusal or "manifest.parquet" in refusal, number
        refused, passed = refused + bool(refusal), passed + (not refusal)
    assert refused > passed > 0


_KINDS: tuple[Callable[[Chance], pa.Array], ...] = (
    lambda c: pa.array([hostile_text(c), None, hostile_text(c)]),
    lambda c: pa.array([hostile_text(c) + "x", "b.png", "c"]),
    lambda c: pa.array([hostile_text(c) + "x", "b.png", "c"], pa.large_string()),
    lambda _: pa.array(["a", "b", "a"]).dictionary_encode(),
    lambda c: pa.array(["a", "b", "x" * int(10 ** c.uniform(1, 6))]),
    lambda c: pa.array([[hostile_text(c)], [None, "x"], []]),
    lambda _: pa.array([["x"], ["y", "z"], ["x"]]),
    lambda c: pa.array(
        [{"bytes": b"1", "path": hostile_text(c)}, None, {"bytes": None, "path": None}]
    ),
    lambda _: pa.array([b"1", b"", None]),
    lambda c: pa.array([1, 2, int(c.integers(-5, 2**62))]),
    lambda _: pa.array([1, 2, 2**64 - 1], pa.uint64()),
    lambda c: pa.array([0.5, float("nan"), float(c.choice([1e308, -1.0, np.inf, 20.0]))]),
    lambda _: pa.array([1.0, 2.0, 7.0]),
    lambda _: pa.array([True, None, False]),
    lambda _: pa.nulls(3),
    lambda _: pa.array([[[1, 2]], [None], None]),
    lambda c: pa.array([{"a": {"b": [hostile_text(c)]}}, None, {"a": None}]),
    lambda _: pa.array([10**20, 1, None], pa.decimal128(30, 5)),
    lambda _: pa.array([0, 1, None], pa.timestamp("ns", "UTC")),
    lambda _: pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    lambda _: pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
    lambda _: pa.array([1, None, 3], pa.duration("s")),
    lambda _: pa.array([b"ab", None, b"cd"], pa.binary(2)),
    lambda _: pa.array([1.0, None, 3.0], pa.float16()),
)
_USUAL = {"image": 1, "target_prompt": 6, "id": 4, "seed": 9, "steps": 12}


def hostile_table(chance: Chance) -> pa.Table:
    """Known columns mostly of a type that passes, and others of any type under any name."""
    columns, names = [], []
    for name in (*KNOWN_COLUMNS, hostile_text(chance), hostile_text(chance), "note"):
        wanted = name in ("image", "target_prompt")
        if not wanted and chance.random() < 0.6:
            continue
        kind = int(chance.integers(len(_KINDS)))
        if chance.random() < 0.8:
            kind = _USUAL.get(name, kind)
        columns.append(_KINDS[kind](chance))
        names.append(name)
    return pa.table(columns, names=names)


def test_columns_of_any_type_are_rows_or_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    refused = passed = 0
    for number, chance in cases("manifest columns"):
        pq.write_table(hostile_table(chance), path)
        refusal = refusal_of(path, "a {note}" if chance.random() < 0.3 else "")
        is_clear = "manifest.parquet" in refusal or refusal.startswith("prompts: ")
        assert not refusal or is_clear, (number, refusal)
        refused, passed = refused + bool(refusal), passed + (not refusal)
    assert min(refused, passed) > planned("manifest columns") / 40


@pytest.mark.parametrize(
    "data", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\0\0\0\0PAR1", bytes(100), b"a,b\n1,2\n", b"PK\3\4"]
)
def test_files_that_are_no_parquet(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.parquet").write_bytes(data)
    for url in (tmp_path, tmp_path / "manifest.parquet"):
        with pytest.raises(ManifestError, match=r"manifest\.parquet is not a Parquet file"):
            Manifest.open(str(url))


def test_a_folder_with_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").mkdir()
    with pytest.raises(ManifestError, match=r"manifest\.parquet is not a Parquet file, a folder"):
        Manifest.open(str(tmp_path / "manifest.parquet"))
    with pytest.raises(ManifestError, match="is not a Parquet file, a folder"):
        Manifest.open(str(tmp_path))


def test_five_thousand_cases_are_tried_by_the_tests() -> None:
    assert sum(SHARES.values()) == 100
    assert sum(DEFAULT_CASES * share // 100 for share in SHARES.values()) >= 5000

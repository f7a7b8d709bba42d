"""`fpe bench scale`: it counts what was written, and says which figures are of whole runs."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.bench.scale.figures import (
    Objects,
    PhaseCost,
    Planned,
    Resumed,
    RunThrough,
    Selected,
    SizeFigures,
    Verified,
    aims,
)
from jobs.bench.scale.filled_run import fill_run
from jobs.bench.scale.measure import count_objects, run_phase
from jobs.bench.scale.memory import Memory, memory_bytes
from jobs.bench.scale.workload import scale_job, write_manifest
from jobs.cli import app
from jobs.terminal.exits import OK, USAGE
from pipeline.edit.no_editor import NOT_EDITED
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import make_plan
from pipeline.storage.folder import Folder
from pipeline.verify.verify import verify_run

ROWS, EDITS_PER_ROW = 6, 2
EDITS = ROWS * EDITS_PER_ROW


def bench(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", "scale", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and what was printed of one size: planned, run whole, resumed."""
    out = tmp_path_factory.mktemp("scale")
    size = ("--rows", str(ROWS), "--edits-per-row", str(EDITS_PER_ROW), "--run-edits", str(EDITS))
    code, printed = bench(*size, "--pictures", "0", "--out", str(out))
    assert code == OK, printed
    return out, printed


def test_everything_is_measured_and_kept(measured: tuple[Path, str]) -> None:
    out, printed = measured
    report = json.loads((out / "scale.json").read_text())
    (size,) = report["sizes"]
    assert (size["rows"], size["edits"]) == (ROWS, EDITS)
    assert size["planned"]["edits"] == size["run"]["edits"] == size["resumed"]["edits"] == EDITS
    assert size["resumed"]["is_run_whole"]
    assert size["selected"]["edits"] == size["verified"]["edits"] == EDITS
    assert size["selected"]["selected"] == EDITS, "the quotas are larger"
    assert size["verified"]["images"] == EDITS + ROWS
    for phase in ("planned", "run", "resumed", "selected", "verified"):
        cost = size[phase]["cost"]
        assert 0 < cost["start_bytes"] <= cost["peak_bytes"]
        assert cost["seconds"] > 0
    workers = ("reader_bytes", "editor_bytes")
    assert all(size["run"]["cost"][worker] > 10**7 for worker in workers)
    assert not any(size["planned"]["cost"][worker] for worker in workers)
    assert report["pictures"] == []
    assert (out / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert report["machine"]["cores"]
    assert "Aims" in printed
    assert not list(out.glob("size-*")), "run folders are scratch"


def test_memory_of_the_object_store_is_not_the_drivers() -> None:
    memory, ended = Memory(), threading.Event()
    looking = threading.Thread(target=memory.look, args=(ended,))
    looking.start()
    size = 64 * 2**20
    store = SharedMemory(create=True, size=size)
    try:
        store.buf[:] = bytes(size)
        seen = threading.Event()
        for _ in range(3000):  # looks are 0.02 s apart
            if memory.shared_bytes >= size:
                break
            seen.wait(0.01)
    finally:
        ended.set()
        looking.join()
        store.close()
        store.unlink()
    assert memory.shared_bytes >= size
    (held,) = memory_bytes("VmHWM")
    assert 0 < memory.peak_bytes() <= held - size // 2


def test_objects_are_counted_by_kind(measured: tuple[Path, str]) -> None:
    """Every edit and every source is a picture; a part has one file beside them."""
    (size,) = json.loads((measured[0] / "scale.json").read_text())["sizes"]
    objects = size["run"]["objects"]
    assert objects["images"] == EDITS + ROWS
    assert objects["in_parts"] == objects["parts"] >= 1
    assert objects["ledger"] == size["resumed"]["ledger_files"] >= 1
    assert objects["work"] == size["planned"]["work_files"] + 1  # and plan.json


def test_what_is_no_size_is_refused(tmp_path: Path) -> None:
    for rows in ("", "a", "0", "10,-1"):
        code, printed = bench("--rows", rows, "--out", str(tmp_path))
        assert code == USAGE
        assert "--rows must be whole numbers" in printed


def test_a_manifest_is_the_same_every_time(tmp_path: Path) -> None:
    first = write_manifest(tmp_path / "a", ROWS, EDITS_PER_ROW).read_bytes()
    assert write_manifest(tmp_path / "b", ROWS, EDITS_PER_ROW).read_bytes() == first


def test_a_filled_ledger_is_a_finished_run(tmp_path: Path) -> None:
    """The phase is run as the benchmark runs it, as a process; its outcomes are committed."""
    manifest = write_manifest(tmp_path, ROWS, EDITS_PER_ROW)
    job = scale_job(manifest, tmp_path / "run")
    assert run_phase("fill", job) == {"edits": EDITS}
    ledger = Ledger.open(Folder.open(job.output))
    assert ledger.counts().accepted == EDITS
    assert make_plan(job, ledger, write=False).edits_pending == 0
    for table in ledger.outcomes():
        assert set(table["message"].to_pylist()) == {NOT_EDITED}
    parts = {path.name for path in (tmp_path / "run").glob("part-*")}
    assert parts == ledger.parts()
    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.accepted, found.pending, found.images_checked) == (EDITS, 0, EDITS + ROWS)


def test_a_run_in_which_all_failed_is_filled_too(tmp_path: Path) -> None:
    job = scale_job(write_manifest(tmp_path, ROWS, EDITS_PER_ROW), tmp_path / "run")
    assert fill_run(job, failed=True) == EDITS
    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.failed, found.images_checked) == (EDITS, 0)


def test_files_are_told_apart(tmp_path: Path) -> None:
    for name in (
        "part-1/metadata.parquet",
        "part-1/edited/a.png",
        "part-1/source/a.png",
        "part-2/metadata.parquet",
        "part-2/more.json",
        ".ledger/outcomes-00000000.parquet",
        ".plan/p/work-00000.parquet",
        ".plan/p/plan.json",
        ".lease/clock",
        "README.md",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    objects = count_objects(tmp_path)
    assert objects == Objects(parts=2, images=2, in_parts=3, ledger=1, work=2, others=2)
    assert objects.small_per_part == 1.5


def figures(rows: int, **changes: Any) -> SizeFigures:
    """One size at which every aim is met, unless changed."""
    megabyte = 10**6
    peak, seconds = changes.get("peak", 500 * megabyte), changes.get("seconds", rows / 60_000)
    cost = PhaseCost(seconds, seconds, 300 * megabyte, peak)
    objects = Objects(
        parts=10, images=rows, in_parts=changes.get("in_parts", 10), ledger=1, work=1, others=5
    )
    run = PhaseCost(rows * changes.get("ms", 4.0) / 1000, 1.0, 300 * megabyte, peak)
    return SizeFigures(
        rows,
        1,
        Planned(cost, rows, 1, 1),
        RunThrough(run, rows, 1.0, None, objects, {}),
        Resumed(
            PhaseCost(changes.get("resume_s", 20.0), 1.0, 1, peak), rows, 1, 1, is_run_whole=False
        ),
        Selected(replace(cost, peak_bytes=peak + rows * changes.get("per_edit", 19)), rows, 9),
        Verified(replace(cost, peak_bytes=peak + rows * changes.get("per_edit", 19)), rows, rows),
    )


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, set()),
        ({"seconds": 30.0}, {"planning,"}),
        ({"peak": 2_100_000_000}, {"driver", "bytes"}),
        ({"peak": 700_000_000}, {"driver", "bytes"}),
        ({"ms": 5.1}, {"overhead"}),
        ({"resume_s": 61.0}, {"resuming"}),
        ({"in_parts": 11}, {"small"}),
        ({"per_edit": 21}, {"bytes"}),
    ],
)
def test_an_aim_that_is_missed_is_said(change: dict[str, Any], missed: set[str]) -> None:
    found = aims([figures(100_000), figures(1_000_000, **change)])
    assert {aim.text.split()[0] for aim in found if aim.is_met is False} == missed
    assert all(aim.is_met is not None for aim in found)


def test_an_aim_that_nothing_tells_of_is_neither_met_nor_missed() -> None:
    small = figures(1000)
    unknown = {aim.text.split()[0] for aim in aims([small]) if aim.is_met is None}
    assert unknown == {"planning,", "driver", "resuming", "bytes"}

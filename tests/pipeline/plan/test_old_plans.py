"""Plans that nothing needs any more go, and those that describe edits stay."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LeaseError, StorageError
from pipeline.job.job import Job
from pipeline.ledger.lease import Lease, take_lease
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import EditKey, outcomes_table
from pipeline.plan.old_plans import remove_old_plans
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.resolved_job import resolve_job
from pipeline.report.edit_table import planned_labels
from pipeline.storage.folder import Folder
from tests.servers.stores import Store

MakeJob = Callable[..., Job]
LABELS = {"target": "{word}", "labels": {"word": ["snow", "rain"]}}


@pytest.fixture
def make_job(store: Store) -> MakeJob:
    def make(rows: int, **sections: Any) -> Job:
        columns = {"image": [f"{n}.png" for n in range(rows)]}
        values = {
            "manifest": store.put_table("manifest.parquet", columns),
            "output": store.url("run"),
            "storage_options": store.storage_options,
            "editor": "none",
            "prompts": LABELS,
        }
        return Job.model_validate(values | sections)

    return make


def finish(folder: Folder, edits: list[bytes]) -> None:
    keys = [EditKey(edit, bytes(16), bytes(16), 0, "x") for edit in edits]
    Ledger.open(folder).commit(outcomes_table(key.failed("decode_failed", "") for key in keys))


def plans_in(folder: Folder) -> set[str]:
    return set(folder.list_folders(".plan"))


@pytest.fixture
def lease(store: Store) -> Lease:
    return take_lease(store.folder("run"), expiry_s=60.0)


def test_of_many_starts_the_first_plan_stays_and_the_last(
    make_job: MakeJob, store: Store, lease: Lease
) -> None:
    """The first has all edits, also those that are done when the others are made."""
    job, folder = make_job(5), store.folder("run")
    ids = list(resolve_job(job).edit_ids())
    plans: list[Plan] = []
    for start in range(4):
        plans.append(make_plan(job))
        remove_old_plans(lease, plans[-1])
        finish(folder, ids[2 * start : 2 * start + 2])
    assert len({plan.plan_id for plan in plans}) == 4
    assert plans_in(folder) == {plans[0].plan_id, plans[-1].plan_id}
    assert planned_labels(folder) == ("word",)
    for name in plans[-1].work_files:
        assert folder.exists(name)


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_plans_of_other_edits_stay(make_job: MakeJob, store: Store, lease: Lease) -> None:
    """A manifest that grew, and a job with other prompts: reports describe all of their edits."""
    folder = store.folder("run")
    first = make_plan(make_job(3))
    finish(folder, list(resolve_job(make_job(3)).edit_ids()))
    grown = make_plan(make_job(5))
    other = make_plan(make_job(5, prompts={"target": "{word}", "labels": {"word": ["fog"]}}))
    remove_old_plans(lease, other)
    assert plans_in(folder) == {first.plan_id, grown.plan_id, other.plan_id}


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_plan_that_a_larger_one_has_goes(make_job: MakeJob, store: Store, lease: Lease) -> None:
    small, folder = make_plan(make_job(3)), store.folder("run")
    large = make_plan(make_job(5))
    remove_old_plans(lease, large)
    assert small.plan_id != large.plan_id
    assert plans_in(folder) == {large.plan_id}


def test_what_an_interrupted_planning_left_goes(
    make_job: MakeJob, store: Store, lease: Lease
) -> None:
    store.put("run/.plan/0123/work-00000.parquet", b"half")
    plan = make_plan(make_job(3))
    remove_old_plans(lease, plan)
    assert plans_in(store.folder("run")) == {plan.plan_id}


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_run_that_lost_the_folder_removes_nothing(
    make_job: MakeJob, store: Store, lease: Lease
) -> None:
    folder = store.folder("run")
    small, large = make_plan(make_job(3)), make_plan(make_job(5))
    take_lease(folder, expiry_s=60.0, silence_s=lambda *_: 1e9)
    with pytest.raises(LeaseError):
        remove_old_plans(lease, large)
    assert plans_in(folder) == {small.plan_id, large.plan_id}


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_plan_that_cannot_be_read_or_removed_stays_and_is_logged(
    make_job: MakeJob,
    store: Store,
    lease: Lease,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = store.folder("run")
    small, large = make_plan(make_job(3)), make_plan(make_job(5))
    store.put("run/.plan/damaged/plan.json", b"{")

    def refuse(self: Folder, path: str) -> None:
        raise StorageError(f"{path}: not allowed")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Folder, "remove", refuse)
        remove_old_plans(lease, large)
    assert plans_in(folder) == {small.plan_id, large.plan_id, "damaged"}
    assert "plan.json is damaged" in caplog.text
    assert f"{small.plan_id} stays" in caplog.text


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_the_images_in_a_plan_of_an_earlier_release_go(
    make_job: MakeJob, store: Store, lease: Lease
) -> None:
    """Its edits stay described. A plan without images is not written again."""
    folder = store.folder("run")
    first = make_plan(make_job(5))
    finish(folder, list(resolve_job(make_job(5)).edit_ids())[:2])
    last = make_plan(make_job(5))
    (path,) = first.work_files
    rows = pq.read_table(io.BytesIO(folder.read(path))).drop_columns(["embedded"])
    place = rows.column_names.index("image_bytes")
    images = pa.array([b"\xff\xd8Exif"] * len(rows), pa.binary())
    for is_old in (False, True):
        if is_old:
            rows = rows.set_column(place, "image_bytes", images)
        sink = io.BytesIO()
        pq.write_table(rows, sink)
        folder.replace(path, sink.getvalue())
        remove_old_plans(lease, last)
        after = folder.read(path)
        assert (after == sink.getvalue()) is not is_old
    assert b"Exif" not in after
    assert pq.read_table(io.BytesIO(after))["edits"].equals(rows["edits"])

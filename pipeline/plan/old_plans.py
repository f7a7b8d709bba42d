"""Removes the plans of earlier runs that nothing needs any more, and the images in those that stay.

A plan is for the run that made it. Afterwards reports read the prompts and labels of rejected and
failed edits from it, so a plan stays as long as it has an edit that no other plan has. Every other
one goes, and what an interrupted planning left: a run that is started again and again leaves the
plan of its first start, and that of the last.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.ledger.id_set import IdSet
from pipeline.ledger.lease import Lease
from pipeline.manifest.arrow_types import holds_bytes
from pipeline.plan.plan import PLAN_FILE, PLAN_FOLDER, Plan
from pipeline.storage.folder import Folder

_WITH_IMAGES = ("image_bytes", "masks", "carried")
"""The columns of a work list that have the manifest's images, until release 0.3."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _OldPlan:
    plan_id: str
    edits: int
    work_files: tuple[str, ...]

    @property
    def path(self) -> str:
        return f"{PLAN_FOLDER}/{self.plan_id}"


def remove_old_plans(lease: Lease, current: Plan) -> None:
    """To be called by the run that holds the lease, once its own plan is written.

    A store that lets nothing be removed, or a plan that cannot be read, is logged: the run does not
    depend on it. Raises LeaseError if another run has taken the folder over.
    """
    folder = lease.folder
    old = [_read(folder, name) for name in folder.list_folders(PLAN_FOLDER)]
    kept = [_OldPlan(current.plan_id, current.edits_pending, current.work_files)]
    known, loaded = IdSet(), 0
    for plan in sorted(filter(None, old), key=lambda each: (-each.edits, each.plan_id)):
        if plan.plan_id == current.plan_id:
            continue
        try:
            is_new = plan.edits > sum(each.edits for each in kept)  # the others cannot have all
            if not is_new:
                for each in kept[loaded:]:
                    for ids in _edit_ids(folder, each):
                        known.update(ids)
                loaded = len(kept)
                is_new = not all(all(known.has(ids)) for ids in _edit_ids(folder, plan))
            lease.check()
            if is_new:
                kept.append(plan)
                for path in plan.work_files:
                    _remove_images(folder, path)
            else:
                folder.remove(f"{plan.path}/{PLAN_FILE}")  # without it, it is an interrupted plan
                folder.remove(plan.path)
        except (StorageError, pa.ArrowException, KeyError, OSError) as error:
            _log.warning("the old plan %s stays: %s", folder.url_of(plan.path), error)


def _read(folder: Folder, plan_id: str) -> _OldPlan | None:
    """A plan by its summary; one without edits if planning was interrupted, None if it is damaged.

    Raises StorageError.
    """
    path = f"{PLAN_FOLDER}/{plan_id}/{PLAN_FILE}"
    if not folder.exists(path):
        return _OldPlan(plan_id, 0, ())
    try:
        summary = json.loads(folder.read(path))
        return _OldPlan(plan_id, int(summary["edits_pending"]), tuple(summary["work_files"]))
    except (KeyError, TypeError, ValueError) as error:
        _log.warning("an old plan stays: %s is damaged: %s", folder.url_of(path), error)
        return None


def _edit_ids(folder: Folder, plan: _OldPlan) -> Iterator[list[bytes]]:
    for path in plan.work_files:
        file = pq.ParquetFile(io.BytesIO(folder.read(path)))
        table = file.read(columns=["edits.list.element.edit_id"])
        edits = table["edits"].combine_chunks().flatten()
        yield edits.field("edit_id").to_pylist()


def _remove_images(folder: Folder, path: str) -> None:
    """Writes a work file of an earlier release again, without the images of the manifest."""
    data = io.BytesIO(folder.read(path))
    schema = pq.read_schema(data)
    columns = [item for item in schema if item.name in _WITH_IMAGES and holds_bytes(item.type)]
    if "embedded" in schema.names or not columns:
        return
    if any(item.name != "image_bytes" for item in columns) or _has_values(data, "image_bytes"):
        kept = [name for name in schema.names if name not in _WITH_IMAGES]
        sink = io.BytesIO()
        pq.write_table(pq.read_table(data, columns=kept), sink, compression="zstd")
        folder.replace(path, sink.getvalue())


def _has_values(data: io.BytesIO, column: str) -> bool:
    values = pq.read_table(data, columns=[column])[column]
    return bool(values.null_count < len(values))

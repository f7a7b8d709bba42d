"""A ledger as a finished run leaves it, without the run: for sizes that would take hours.

Plan, parts, outcomes and commits are the real ones; only pictures and metadata are missing, which a
run that finds nothing to do does not look at. The folders of the parts are there, empty, because
they are listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.actor_kinds import Node
from pipeline.job import Job
from pipeline.ledger import Ledger
from pipeline.no_editor import NOT_EDITED
from pipeline.outcome import OUTCOME_SCHEMA, Outcome
from pipeline.part_writer import part_name
from pipeline.plan import Plan, make_plan
from pipeline.resources import size_pool
from pipeline.run import COMMIT_EDITS
from pipeline.storage import Folder
from pipeline.work_slice import cut_work, read_slice


def fill_ledger(job: Job) -> int:
    """Commits every edit of a job as accepted; returns how many. For local run folders."""
    folder = Folder.open(job.output)
    ledger = Ledger.open(folder)
    plan = make_plan(job, ledger)
    waiting: list[pa.Table] = []
    for part, outcomes in _parts(job, folder, plan):
        (Path(folder.url) / part).mkdir()
        waiting.append(outcomes)
        if sum(map(len, waiting)) >= COMMIT_EDITS:
            ledger.commit(pa.concat_tables(waiting))
            waiting = []
    if waiting:
        ledger.commit(pa.concat_tables(waiting))
    return len(ledger.done_ids())


def _parts(job: Job, folder: Folder, plan: Plan) -> Iterator[tuple[str, pa.Table]]:
    """The parts of a run on two CPUs, and their outcomes."""
    pixels = plan.parameters.width_px * plan.parameters.height_px
    pool = size_pool(
        [Node(cpus=2)],
        job.resources,
        device="cpu",
        groups=plan.groups_pending,
        pixels_per_image=pixels,
    )
    for work in cut_work(folder, plan.work_files, pool.groups_per_block):
        groups = read_slice(folder, work).to_pylist()
        edits = [(group, edit) for group in groups for edit in group["edits"]]
        part = part_name(edit["edit_id"] for _, edit in edits)
        yield part, _outcomes(part, edits)


def _outcomes(part: str, edits: list[tuple[dict[str, object], dict[str, object]]]) -> pa.Table:
    rows = [
        {
            "edit_id": edit["edit_id"],
            "group_id": group["group_id"],
            "source_id": group["source_id"],
            "row": group["row"],
            "part": part,
            "outcome": Outcome.ACCEPTED.value,
            "reason": "",
            "message": NOT_EDITED,
            "edited_file_name": f"{part}/edited/{group['stem']}__{_hex(edit['edit_id'])}.png",
            "target_prompt": edit["target_prompt"],
            "unet_rows": 0.0,
            "seconds": 0.0,
            "edit_type": "",
            "source_file_name": f"{part}/source/{group['stem']}__{_hex(group['source_id'])}.png",
        }
        for group, edit in edits
    ]
    return pa.Table.from_pylist(rows, schema=OUTCOME_SCHEMA)


def _hex(identity: object) -> str:
    assert isinstance(identity, bytes)
    return identity.hex()

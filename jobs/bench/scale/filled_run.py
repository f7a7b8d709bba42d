"""Makes the run folder of a finished run without running it, for sizes that would take hours.

Plan, parts, metadata, outcomes and commits are real. Every image is a hard link to one of the
sources' files (where the disk has none: a copy of it), so a million take a minute and no space.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.bench.scale.workload import PICTURES
from pipeline.cluster.actor_kinds import Node
from pipeline.cluster.pool import size_pool
from pipeline.edit.no_editor import NOT_EDITED
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import OUTCOME_SCHEMA, EditKey, Outcome, outcomes_table
from pipeline.ledger.parts import METADATA_FILE, image_hash, write_outcomes
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.work_list import cut_work, read_slice
from pipeline.run.commits import COMMIT_EDITS
from pipeline.run.folder import metadata_layout
from pipeline.storage.folder import Folder
from pipeline.write.metadata import MetadataLayout
from pipeline.write.part import encode_metadata, part_name

_Groups = list[dict[str, Any]]


def fill_run(job: Job, *, failed: bool = False) -> int:
    """Commits every edit of a job as accepted, or as failed; returns their number.

    Only for local run folders. Accepted edits have images and metadata, failed ones have neither.
    """
    folder = Folder.open(job.output)
    ledger = Ledger.open(folder)
    plan = make_plan(job, ledger)
    layout = metadata_layout(job, plan)
    sources = [Path(job.manifest_urls[0]).parent / f"sources/{n}.png" for n in range(PICTURES)]
    hashes = [] if failed else [image_hash(source.read_bytes()) for source in sources]
    waiting: list[pa.Table] = []
    for part, groups in _parts(job, folder, plan):
        outcomes = _failed(groups) if failed else _accepted(part, groups)
        if not failed:
            _write_part(
                folder, part, groups, outcomes, layout=layout, sources=sources, hashes=hashes
            )
        waiting.append(outcomes)
        if sum(map(len, waiting)) >= COMMIT_EDITS:
            ledger.commit(pa.concat_tables(waiting))
            waiting = []
    if waiting:
        ledger.commit(pa.concat_tables(waiting))
    return len(ledger.done_ids())


def _parts(job: Job, folder: Folder, plan: Plan) -> Iterator[tuple[str, _Groups]]:
    """The parts that a run on two CPUs would write, and their groups."""
    pixels = plan.parameters.width_px * plan.parameters.height_px
    pool = size_pool(
        [Node(cpus=2)],
        job.resources,
        device="cpu",
        groups=plan.groups_pending,
        pixels_per_image=pixels,
        makes_edits=plan.makes_edits,
    )
    for work in cut_work(folder, plan.work_files, pool.groups_per_block, pool.edits_per_block):
        groups = read_slice(folder, work).to_pylist()
        yield part_name(edit["edit_id"] for group in groups for edit in group["edits"]), groups


def _accepted(part: str, groups: _Groups) -> pa.Table:
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
            "edited_file_name": f"{part}/{_edited(group, edit)}",
            "target_prompt": edit["target_prompt"],
            "unet_rows": 0.0,
            "seconds": 0.0,
            "edit_type": "",
            "source_file_name": f"{part}/{_source(group)}",
        }
        for group in groups
        for edit in group["edits"]
    ]
    return pa.Table.from_pylist(rows, schema=OUTCOME_SCHEMA)


def _failed(groups: _Groups) -> pa.Table:
    return outcomes_table(
        EditKey(
            edit["edit_id"],
            group["group_id"],
            group["source_id"],
            group["row"],
            edit["target_prompt"],
        ).failed("decode_failed", "the image cannot be decoded")
        for group in groups
        for edit in group["edits"]
    )


def _write_part(
    run: Folder,
    name: str,
    groups: _Groups,
    outcomes: pa.Table,
    *,
    layout: MetadataLayout,
    sources: list[Path],
    hashes: list[bytes],
) -> None:
    part, of_files = Path(run.url) / name, dict[str, bytes]()
    for kind in ("edited", "source"):
        (part / kind).mkdir(parents=True)
    rows: list[Mapping[str, Any]] = []
    for group in groups:
        image = sources[group["row"] % PICTURES]
        digest = hashes[group["row"] % PICTURES]
        _link(image, part / _source(group))
        of_files[f"{name}/{_source(group)}"] = digest
        for edit in group["edits"]:
            _link(image, part / _edited(group, edit))
            of_files[f"{name}/{_edited(group, edit)}"] = digest
            rows.append(
                {
                    "edited_file_name": _edited(group, edit),
                    "source_file_name": _source(group),
                    "edit_id": edit["edit_id"].hex(),
                    "source_id": group["source_id"].hex(),
                    "group_id": group["group_id"].hex(),
                    "id": group["id"],
                    "source_prompt": group["source_prompt"],
                    "target_prompt": edit["target_prompt"],
                }
            )
    carried = pa.Table.from_pylist([g["carried"] for g in groups for _ in g["edits"]])
    metadata = layout.table(rows, carried)
    record = write_outcomes(run, name, outcomes, of_files)
    (part / METADATA_FILE).write_bytes(encode_metadata(metadata, record))


def _link(image: Path, name: Path) -> None:
    try:
        os.link(image, name)
    except OSError:  # no hard links on this disk, or too many of this file
        shutil.copyfile(image, name)


def _edited(group: Mapping[str, Any], edit: Mapping[str, Any]) -> str:
    return f"edited/{group['stem']}__{edit['edit_id'].hex()}.png"


def _source(group: Mapping[str, Any]) -> str:
    return f"source/{group['stem']}__{group['source_id'].hex()}.png"

"""Run folders as finished runs leave them, without Ray: with one picture for all edits, or made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.edit.actor import EditActor
from pipeline.edit.settings import EditSettings
from pipeline.job.job import Job
from pipeline.judge.judge import JudgeSettings
from pipeline.ledger.checked_file import read_checked
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import (
    OUTCOME_SCHEMA,
    EditKey,
    EditOutcome,
    outcomes_table,
)
from pipeline.ledger.parts import image_hash, read_part_outcomes, write_outcomes
from pipeline.manifest.rows import Problems
from pipeline.plan.embedded_images import embedded_of, read_run, runs_of
from pipeline.plan.plan import make_plan
from pipeline.plan.resolved_job import resolve_job
from pipeline.plan.work_list import cut_work
from pipeline.read.decode import decode
from pipeline.run.folder import claim_columns, metadata_layout
from pipeline.run.worker_settings import decode_settings
from pipeline.storage.folder import Folder
from pipeline.write.image_format import ImageFormat
from pipeline.write.part import encode_metadata

METADATA_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in (
            "edited_file_name",
            "source_file_name",
            "edit_id",
            "group_id",
            "source_id",
            "target_prompt",
        )
    ]
)


def hashes_of(folder: Folder, outcomes: pa.Table) -> dict[str, bytes]:
    """The hashes of the images that outcomes name, of those that exist."""
    names = {*outcomes["edited_file_name"].to_pylist(), *outcomes["source_file_name"].to_pylist()}
    return {name: image_hash(folder.read(name)) for name in names if name and folder.exists(name)}


def accept_images(folder: Folder, part: str) -> None:
    """Makes the part one that was written with the images that it has now."""
    outcomes, path = read_part_outcomes(folder, part), f"{part}/metadata.parquet"
    record = write_outcomes(folder, part, outcomes, hashes_of(folder, outcomes))
    folder.replace(path, encode_metadata(read_checked(folder.read(path)), record))


@dataclass(frozen=True)
class FinishedRun:
    """Writes parts of a job's run folder the way the pipeline does: images, metadata, ledger."""

    job: Job
    image: bytes

    @property
    def folder(self) -> Folder:
        return Folder.open(self.job.output, self.job.storage_options)

    def keys(self) -> list[EditKey]:
        """All edits of the job, in order."""
        return [
            EditKey(identity, group.group_id, group.source_id, group.source.row, edit.target_prompt)
            for groups, _ in resolve_job(self.job).groups(Problems())
            for group in groups
            for identity, edit in group.edits
        ]

    def write_part(
        self, part: str, accepted: Sequence[EditKey], failed: Sequence[EditKey] = ()
    ) -> pa.Table:
        """Images and metadata; returns the outcomes, which are not committed yet."""
        outcomes: list[EditOutcome] = [key.failed("decode_failed", "broken") for key in failed]
        rows = []
        for key in accepted:
            edited, source = f"edited/{key.edit_id.hex()}.png", f"source/{key.source_id.hex()}.png"
            self.folder.write_new(f"{part}/{edited}", self.image)
            self.folder.write_if_absent(f"{part}/{source}", self.image)
            outcomes.append(
                key.accepted(
                    part=part, edited_file_name=f"{part}/{edited}", unet_rows=10.0, seconds=0.5
                )
            )
            rows.append(
                {
                    "edited_file_name": edited,
                    "source_file_name": source,
                    "edit_id": key.edit_id.hex(),
                    "group_id": key.group_id.hex(),
                    "source_id": key.source_id.hex(),
                    "target_prompt": key.target_prompt,
                }
            )
        table = outcomes_table(outcomes)
        record = write_outcomes(self.folder, part, table, hashes_of(self.folder, table))
        metadata = pa.Table.from_pylist(rows, schema=METADATA_SCHEMA)
        self.folder.write_new(f"{part}/metadata.parquet", encode_metadata(metadata, record))
        return table

    def commit(self, *tables: pa.Table) -> None:
        ledger = Ledger.open(self.folder)
        for table in tables:
            ledger.commit(table)


def make_edits(
    job: Job,
    groups_per_block: int,
    judge: JudgeSettings | None = None,
    *,
    edits_per_block: int = 10_000,
) -> None:
    """Runs a job in this process, with the model: every block of sources is a part."""
    folder = Folder.open(job.output, job.storage_options)
    ledger = Ledger.open(folder)
    plan = make_plan(job, ledger)
    layout = replace(
        metadata_layout(job, plan),
        judged=judge is not None,
        gated=judge is not None and judge.reconstruction.is_on,
    )
    actor = EditActor(
        EditSettings(
            output=job.output,
            checkpoint=job.model.checkpoint,
            checkpoint_fingerprint=plan.fingerprint,
            device="cpu",
            image_format=ImageFormat(job.images.format, job.images.quality),
            layout=claim_columns(folder, layout),
            judge=judge,
            annotations=plan.annotations,
            makes_edits=plan.makes_edits,
            inversions=job.resources.inversions,
        )
    )
    slices = cut_work(folder, plan.work_files, groups_per_block, edits_per_block)
    for run in runs_of(slices, plan.embedded):
        for block in read_run(folder, run, embedded_of(run, plan.embedded)):
            outcomes = actor(decode(block, decode_settings(job)))
            ledger.commit(outcomes.select(OUTCOME_SCHEMA.names))

"""A run folder as a finished run leaves it, without the model: one picture for every edit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.intent import understand
from pipeline.job import Job
from pipeline.ledger import Ledger
from pipeline.manifest_row import Problems
from pipeline.outcome import (
    OUTCOMES_METADATA_KEY,
    EditKey,
    EditOutcome,
    outcomes_table,
    outcomes_to_bytes,
)
from pipeline.storage import Folder

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
            for groups, _ in understand(self.job).groups(Problems())
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
        metadata = pa.Table.from_pylist(rows, schema=METADATA_SCHEMA).replace_schema_metadata(
            {OUTCOMES_METADATA_KEY: outcomes_to_bytes(table)}
        )
        sink = io.BytesIO()
        pq.write_table(metadata, sink)
        self.folder.write_new(f"{part}/metadata.parquet", sink.getvalue())
        return table

    def commit(self, *tables: pa.Table) -> None:
        ledger = Ledger.open(self.folder)
        for table in tables:
            ledger.commit(table)

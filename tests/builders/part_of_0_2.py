"""What release 0.2.0 wrote into the metadata of a part."""

from __future__ import annotations

import base64
import io

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ledger.outcome import OUTCOME_SCHEMA, OUTCOMES_METADATA_KEY
from pipeline.ledger.parts import REJECTED_METADATA_KEY


def outcomes_to_bytes(table: pa.Table) -> bytes:
    """All outcomes of the part, as text."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, OUTCOME_SCHEMA) as writer:
        writer.write_table(table.cast(OUTCOME_SCHEMA))
    return base64.b64encode(sink.getvalue())


def metadata_of_0_2(
    metadata: pa.Table, outcomes: pa.Table, rejected: pa.Table | None = None
) -> bytes:
    """A metadata.parquet; `rejected`: the metadata of rejected edits."""
    values = {OUTCOMES_METADATA_KEY: outcomes_to_bytes(outcomes)}
    if rejected is not None and rejected.num_rows:
        values[REJECTED_METADATA_KEY] = base64.b64encode(metadata_of_0_2(rejected, outcomes))
    sink = io.BytesIO()
    pq.write_table(metadata.replace_schema_metadata(values), sink, compression="zstd")
    return sink.getvalue()

"""What became of an edit: accepted, rejected or failed, with the reason. Nothing else exists."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

import pyarrow as pa

from pipeline.redact import tellable

MAX_MESSAGE_CHARS = 500
OUTCOMES_METADATA_KEY = b"fpe.outcomes"
"""Key in the schema metadata of a part's metadata.parquet; see `outcomes_to_bytes`."""


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FAILED = "failed"


class FailureCode(StrEnum):
    """Why an edit could not be made. Closed."""

    SOURCE_MISSING = "source_missing"
    SOURCE_FORBIDDEN = "source_forbidden"
    DECODE_FAILED = "decode_failed"
    IMAGE_TOO_LARGE = "image_too_large"
    PROMPT_INVALID = "prompt_invalid"
    INVERSION_DIVERGED = "inversion_diverged"
    NAN_LATENT = "nan_latent"
    OUT_OF_MEMORY = "out_of_memory"
    WRITE_FAILED = "write_failed"
    WORKER_DIED = "worker_died"


class RejectReason(StrEnum):
    """Why an edit that was made is not part of the dataset. Closed."""

    NO_CHANGE = "no_change"
    STRUCTURE_LOST = "structure_lost"
    WRONG_DIRECTION = "wrong_direction"
    OFF_TARGET = "off_target"


ID_TYPE = pa.binary(16)

OUTCOME_SCHEMA = pa.schema(
    [
        pa.field("edit_id", ID_TYPE, nullable=False),
        pa.field("group_id", ID_TYPE, nullable=False),
        pa.field("source_id", ID_TYPE, nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("edited_file_name", pa.string(), nullable=False),
        pa.field("target_prompt", pa.string(), nullable=False),
        pa.field("unet_rows", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ]
)
"""One row per edit; every ledger file and every batch that an actor returns has exactly this."""


@dataclass(frozen=True)
class EditOutcome:
    """One row of OUTCOME_SCHEMA; make it with `accepted`, `rejected` or `failed`.

    `part` and `edited_file_name` (relative to the run folder) are "" where there is no image;
    `reason` is "" exactly for accepted edits. `unet_rows` is this edit's share of its group's.
    """

    edit_id: bytes
    group_id: bytes
    source_id: bytes
    row: int
    part: str
    outcome: str
    reason: str
    message: str
    edited_file_name: str
    target_prompt: str
    unet_rows: float
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", short_message(self.message))
        match Outcome(self.outcome):
            case Outcome.ACCEPTED:
                if self.reason or not self.part or not self.edited_file_name:
                    raise ValueError("an accepted edit has a part and a file and no reason")
            case Outcome.REJECTED:
                RejectReason(self.reason)
            case Outcome.FAILED:
                FailureCode(self.reason)


@dataclass(frozen=True)
class EditKey:
    """What identifies an edit in its outcome, known before the edit is made."""

    edit_id: bytes
    group_id: bytes
    source_id: bytes
    row: int
    target_prompt: str

    def accepted(
        self, *, part: str, edited_file_name: str, unet_rows: float, seconds: float
    ) -> EditOutcome:
        return EditOutcome(
            **asdict(self),
            part=part,
            outcome=Outcome.ACCEPTED,
            reason="",
            message="",
            edited_file_name=edited_file_name,
            unet_rows=unet_rows,
            seconds=seconds,
        )

    def rejected(
        self, reason: RejectReason, message: str = "", *, unet_rows: float, seconds: float
    ) -> EditOutcome:
        return EditOutcome(
            **asdict(self),
            part="",
            outcome=Outcome.REJECTED,
            reason=reason,
            message=message,
            edited_file_name="",
            unet_rows=unet_rows,
            seconds=seconds,
        )

    def failed(
        self, code: str, message: str, *, unet_rows: float = 0.0, seconds: float = 0.0
    ) -> EditOutcome:
        """Raises ValueError for a code outside FailureCode."""
        return EditOutcome(
            **asdict(self),
            part="",
            outcome=Outcome.FAILED,
            reason=FailureCode(code),
            message=message,
            edited_file_name="",
            unet_rows=unet_rows,
            seconds=seconds,
        )


def short_message(message: str) -> str:
    """One line of at most MAX_MESSAGE_CHARS that any encoder accepts, without secrets of URLs."""
    line = tellable(" ".join(message.split())).encode("utf-8", "replace").decode("utf-8")
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 3] + "..."


def outcomes_table(outcomes: Iterable[EditOutcome]) -> pa.Table:
    """Rows of OUTCOME_SCHEMA, in the order given."""
    rows = list(outcomes)
    return pa.table(
        {name: [getattr(row, name) for row in rows] for name in OUTCOME_SCHEMA.names},
        schema=OUTCOME_SCHEMA,
    )


def outcomes_to_bytes(table: pa.Table) -> bytes:
    """The outcomes of a part as bytes for its metadata.parquet.

    Stored under OUTCOMES_METADATA_KEY in the schema metadata, they let `adopt_orphan_parts`
    restore rejected and failed edits, times and row counts too when a run died between writing
    the part and committing it. Base64, because Parquet's key-values are text.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, OUTCOME_SCHEMA) as writer:
        writer.write_table(table.cast(OUTCOME_SCHEMA))
    return base64.b64encode(sink.getvalue())


def outcomes_from_bytes(data: bytes) -> pa.Table:
    """The reverse of `outcomes_to_bytes`; raises pyarrow.ArrowInvalid for anything else."""
    try:
        stream = base64.b64decode(data, validate=True)
        with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
            table = reader.read_all()
    except (binascii.Error, OSError) as error:
        raise pa.ArrowInvalid(f"these are no outcomes of a part: {error}") from error
    return table.cast(OUTCOME_SCHEMA)

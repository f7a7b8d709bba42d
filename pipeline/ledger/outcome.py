"""The outcome of an edit: accepted, rejected, failed or not applicable, with the reason."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from fpe_core.judging.rules import RejectReason
from fpe_core.scores.edit_scores import EditScores
from pipeline.redact import safe_text

MAX_MESSAGE_CHARS = 500
OUTCOMES_METADATA_KEY = b"fpe.outcomes"
"""Key in the schema metadata of a part's metadata.parquet of 0.2.0 (`outcomes_from_bytes`)."""


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"
    """The job's editor cannot make it: the row lacks what the editor needs. Not a failure."""


class FailureCode(StrEnum):
    """Why an edit could not be made. A closed set."""

    SOURCE_MISSING = "source_missing"
    SOURCE_FORBIDDEN = "source_forbidden"
    SOURCE_THROTTLED = "source_throttled"
    DECODE_FAILED = "decode_failed"
    IMAGE_TOO_LARGE = "image_too_large"
    PROMPT_INVALID = "prompt_invalid"
    INVERSION_DIVERGED = "inversion_diverged"
    NAN_LATENT = "nan_latent"
    OUT_OF_MEMORY = "out_of_memory"
    JUDGE_FAILED = "judge_failed"
    WRITE_FAILED = "write_failed"
    WORKER_DIED = "worker_died"


ID_TYPE = pa.binary(16)

SCORE_COLUMNS = tuple(item.name for item in fields(EditScores))
"""The scores of an edit, as columns of outcomes and metadata."""

ATTEMPT_TYPE = pa.struct(
    [
        pa.field("parameters", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("unet_rows", pa.float64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in SCORE_COLUMNS),
    ]
)
"""The Arrow type of one attempt at an edit; see `AttemptRecord`."""
GATE_COLUMN = "autoencoder_psnr_db"
"""PSNR in dB of the source after encoding and decoding; null if no gate measured it."""

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
        pa.field("edit_type", pa.string(), nullable=False),
        pa.field("source_file_name", pa.string(), nullable=False),
        *(pa.field(name, pa.float64()) for name in (*SCORE_COLUMNS, GATE_COLUMN)),
        pa.field("tries", pa.list_(ATTEMPT_TYPE)),
    ]
)
"""One row per edit. Ledger files, and the tables that actors return, have exactly this schema."""


_NESTED = ("key", "scores", "tries")


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt at an edit that took several.

    Attributes:
        parameters: the edit parameters, as JSON (`EditParameters.to_dict`).
        reason: why it was rejected; "" if it was accepted, FAILED if no image was made.
        unet_rows, seconds: the cost of this attempt; that of attempt 1 includes a share of the
            inversion's.
    """

    parameters: str
    reason: str
    message: str
    unet_rows: float
    seconds: float
    scores: EditScores

    FAILED: ClassVar = "failed"

    def to_row(self) -> dict[str, Any]:
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        del own["scores"]
        return {**own, "message": short_message(self.message), **asdict(self.scores)}


@dataclass(frozen=True)
class EditKey:
    """What identifies an edit in its outcome, known before the edit is made.

    `edit_type` is the kind of change that it asks for ("colour"), "" if not given.
    """

    edit_id: bytes
    group_id: bytes
    source_id: bytes
    row: int
    target_prompt: str
    edit_type: str = ""

    def accepted(
        self,
        *,
        part: str,
        edited_file_name: str,
        unet_rows: float,
        seconds: float,
        source_file_name: str = "",
        scores: EditScores | None = None,
        autoencoder_psnr_db: float | None = None,
        message: str = "",
        tries: tuple[AttemptRecord, ...] = (),
    ) -> EditOutcome:
        return EditOutcome(
            key=self,
            part=part,
            outcome=Outcome.ACCEPTED,
            reason="",
            message=message,
            edited_file_name=edited_file_name,
            source_file_name=source_file_name,
            unet_rows=unet_rows,
            seconds=seconds,
            scores=scores or EditScores(),
            tries=tries,
            autoencoder_psnr_db=autoencoder_psnr_db,
        )

    def rejected(
        self,
        reason: RejectReason,
        message: str = "",
        *,
        unet_rows: float,
        seconds: float,
        part: str = "",
        edited_file_name: str = "",
        source_file_name: str = "",
        scores: EditScores | None = None,
        tries: tuple[AttemptRecord, ...] = (),
        autoencoder_psnr_db: float | None = None,
    ) -> EditOutcome:
        """File names are "" if the image, or its source, was not kept; `part` if neither was."""
        return EditOutcome(
            key=self,
            part=part,
            outcome=Outcome.REJECTED,
            reason=reason,
            message=message,
            edited_file_name=edited_file_name,
            source_file_name=source_file_name,
            unet_rows=unet_rows,
            seconds=seconds,
            scores=scores or EditScores(),
            tries=tries,
            autoencoder_psnr_db=autoencoder_psnr_db,
        )

    def failed(
        self, code: str, message: str, *, unet_rows: float = 0.0, seconds: float = 0.0
    ) -> EditOutcome:
        """Raises ValueError if `code` is not a FailureCode."""
        return EditOutcome(
            key=self,
            part="",
            outcome=Outcome.FAILED,
            reason=FailureCode(code),
            message=message,
            edited_file_name="",
            source_file_name="",
            unet_rows=unet_rows,
            seconds=seconds,
            scores=EditScores(),
        )

    def not_applicable(self, message: str) -> EditOutcome:
        """An edit that the job's editor cannot make; `message`: why."""
        return EditOutcome(
            key=self,
            part="",
            outcome=Outcome.NOT_APPLICABLE,
            reason="",
            message=message,
            edited_file_name="",
            source_file_name="",
            unet_rows=0.0,
            seconds=0.0,
            scores=EditScores(),
        )


@dataclass(frozen=True)
class EditOutcome:
    """One row of OUTCOME_SCHEMA; make it with `accepted`, `rejected`, `failed` or `not_applicable`.

    File names are relative to the run folder. `part` is the folder whose metadata has the edit:
    part-<id> of an accepted edit, rejected/part-<id> of a rejected one that was kept, else "".
    `reason` is "" for edits that are accepted or not applicable, and only for them.
    `unet_rows` is this edit's share of its group's UNet rows, over all attempts. Each of `scores`
    is None if it was not computed, and `autoencoder_psnr_db` (of the source) if no gate measured
    it. `tries` has all attempts if there was more than one; the outcome is that of the accepted
    attempt, else of the first.
    """

    key: EditKey
    part: str
    outcome: str
    reason: str
    message: str
    edited_file_name: str
    source_file_name: str
    unet_rows: float
    seconds: float
    scores: EditScores
    tries: tuple[AttemptRecord, ...] = ()
    autoencoder_psnr_db: float | None = None

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
            case Outcome.NOT_APPLICABLE:
                if self.reason or self.part:
                    raise ValueError("an edit that is not applicable has neither part nor reason")

    @property
    def edit_id(self) -> bytes:
        return self.key.edit_id

    def to_row(self) -> dict[str, Any]:
        # vars and not asdict, which copies every value: this runs millions of times.
        return {
            **{name: value for name, value in vars(self).items() if name not in _NESTED},
            **vars(self.key),
            **vars(self.scores),
            "tries": [each.to_row() for each in self.tries] or None,
        }


def short_message(message: str) -> str:
    """One line of at most MAX_MESSAGE_CHARS, valid as UTF-8, without secrets of URLs."""
    line = safe_text(" ".join(message.split())).encode("utf-8", "replace").decode("utf-8")
    return line if len(line) <= MAX_MESSAGE_CHARS else line[: MAX_MESSAGE_CHARS - 3] + "..."


def outcomes_table(outcomes: Iterable[EditOutcome]) -> pa.Table:
    """Rows of OUTCOME_SCHEMA, in the order given."""
    return pa.Table.from_pylist([outcome.to_row() for outcome in outcomes], schema=OUTCOME_SCHEMA)


RENAMED_REASONS_OF_0_1 = {"source_not_reproduced": RejectReason.SOURCE_NOT_RECONSTRUCTED}
"""Reasons that 0.1 wrote into ledgers and parts, and their names now."""


def with_todays_reasons(table: pa.Table) -> pa.Table:
    """Outcomes of any release, with the reasons' names of this one. KeyError without `reason`."""
    for old, new in RENAMED_REASONS_OF_0_1.items():
        is_old = pc.equal(table["reason"], old)
        if pc.any(is_old).as_py():
            place = table.column_names.index("reason")
            reasons = pc.if_else(is_old, new.value, table["reason"])
            table = table.set_column(place, table.field(place), reasons)
    return table


def as_outcomes(table: pa.Table) -> pa.Table:
    """A table in OUTCOME_SCHEMA, also if 0.1 wrote it; other columns are left out.

    Raises pyarrow.ArrowInvalid or KeyError for a table that does not hold outcomes.
    """
    columns = [table[item.name].cast(item.type) for item in OUTCOME_SCHEMA]
    return with_todays_reasons(pa.table(columns, schema=OUTCOME_SCHEMA))


def outcomes_from_bytes(data: bytes) -> pa.Table:
    """The outcomes in a part's metadata of 0.2.0: an Arrow stream in Base64.

    Raises pyarrow.ArrowInvalid for anything else.
    """
    try:
        stream = base64.b64decode(data, validate=True)
        with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
            table = reader.read_all()
        return as_outcomes(table)
    except (binascii.Error, OSError, KeyError) as error:
        raise pa.ArrowInvalid(f"these are not outcomes of a part: {error}") from error

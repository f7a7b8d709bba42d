"""Outcomes made by hand, by number."""

from __future__ import annotations

import pyarrow as pa

from fpe_core.judging.rules import RejectReason
from pipeline.ledger.outcome import EditKey, EditOutcome, outcomes_table


def key(number: int) -> EditKey:
    """Edit `number` of group `number // 2`."""
    return EditKey(
        edit_id=number.to_bytes(16),
        group_id=(number // 2).to_bytes(16, "little"),
        source_id=(number // 2).to_bytes(16),
        row=number // 2,
        target_prompt=f"prompt {number}",
    )


def accepted(number: int, part: str = "part-a") -> EditOutcome:
    name = f"{part}/edited/{number}.png"
    return key(number).accepted(part=part, edited_file_name=name, unet_rows=10.0, seconds=0.5)


def failed(number: int, code: str = "decode_failed") -> EditOutcome:
    return key(number).failed(code, f"edit {number} is broken")


def rejected(number: int, reason: RejectReason = RejectReason.NO_CHANGE) -> EditOutcome:
    return key(number).rejected(reason, unet_rows=10.0, seconds=0.5)


def table_of(*outcomes: EditOutcome) -> pa.Table:
    return outcomes_table(outcomes)

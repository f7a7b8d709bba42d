"""Work rows made by hand, for testing the stages alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fpe_core import EditParameters
from pipeline.plan.plan import work_schema
from tests.builders.tiny_checkpoint import SIZE_PX

PARAMETERS = EditParameters(
    steps=3, guidance_scale=3.0, width_px=SIZE_PX, height_px=SIZE_PX, replaced_fraction=0.5
)


def an_id(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def work_row(
    number: int,
    *,
    uri: str = "",
    image_bytes: bytes | None = None,
    targets: Sequence[str] = ("a red cat",),
    labels: Sequence[Sequence[str]] | None = None,
    source_prompt: str = "",
    seed: int | None = None,
    parameters: EditParameters = PARAMETERS,
    carried: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One group; without uri and image_bytes a synthetic one."""
    row: dict[str, Any] = {
        "row": number,
        "group_id": an_id("group", number),
        "source_id": an_id("source", number),
        "uri": uri,
        "image_bytes": image_bytes,
        "source_prompt": source_prompt,
        "seed": seed or 0,
        "synthetic": not uri and image_bytes is None,
        "stem": f"picture-{number}",
        "split": "",
        "id": "",
        "parameters": json.dumps(parameters.to_dict()),
        "edits": [
            {
                "edit_id": an_id("edit", number, place, target),
                "target_prompt": target,
                "labels": list(labels[place]) if labels else [],
                "edit_type": "",
            }
            for place, target in enumerate(targets)
        ],
    }
    return row | ({"carried": carried} if carried is not None else {})


def work_table(rows: Sequence[dict[str, Any]], carried: pa.Schema | None = None) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=work_schema(carried or pa.schema([])))

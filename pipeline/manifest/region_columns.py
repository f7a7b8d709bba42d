"""The manifest's columns with prompts of what is inside an edit's mask, and of what is outside.

    source_inside, source_outside   what the source shows there
    target_inside, target_outside   what the edited picture shows there

Each holds a text, or a list with one text for each target prompt; all are optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fpe_core import RegionPrompts

REGION_COLUMNS = RegionPrompts._fields
REGION_PROMPTS = "region_prompts"
"""All four of an edit, in the work list: a list of texts, "" for those that are not given."""


def region_prompts_of(known: Mapping[str, Any], prompts: int) -> list[RegionPrompts | None]:
    """Those of each edit of a row; a text is that of all edits, null and "" mean none.

    Raises ValueError, with the column's name.
    """
    columns = []
    for name in REGION_COLUMNS:
        value = known.get(name)
        texts = value if isinstance(value, list) else [value] * prompts
        if len(texts) != prompts:
            raise ValueError(f"{name} has {len(texts)} entries for {prompts} target prompts")
        columns.append([str(each or "").strip() for each in texts])
    return [RegionPrompts(*four) if any(four) else None for four in zip(*columns, strict=True)]

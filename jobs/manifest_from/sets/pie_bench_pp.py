"""PIE-Bench++: PIE-Bench's pictures with revised prompts, as Parquet with one folder per type.

Format: the dataset card of UB-CVML-Group/PIE_Bench_pp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.manifest_from.prompts import pairs_of, without_marks
from jobs.manifest_from.sets.pie_bench import EDIT_TYPES, put_mask
from jobs.manifest_from.source import (
    BLEND_WORDS,
    EDIT_MASK,
    EDIT_TYPE,
    SOURCE_PROMPT,
    TARGET_PROMPT,
    TEXT,
    Entries,
    Options,
    Row,
    Source,
)
from jobs.manifest_from.tables import TableFile, picture_of, table_files

_WANTED = {
    "image": "image",
    "id": "text",
    "source_prompt": "text",
    "target_prompt": "text",
    "edit_action": "text",
    "aspect_mapping": "text",
    "blended_words": "text",
    "mask": "text",
}
_CARRIED = ("edit_action", "aspect_mapping", "blended_words")
_TYPE_FOLDER = re.compile("|".join(f"{n}_{name}_[0-9]+" for n, name in EDIT_TYPES.items()))
"""Such as 1_change_object_80, in the file's path."""


def read(source: Path, options: Options) -> Entries:
    files = table_files(source, _WANTED, "PIE-Bench++", options.split)
    texts = [pa.field(name, TEXT) for name in ("editing_type_id", *_CARRIED)]
    columns = (SOURCE_PROMPT, TARGET_PROMPT, EDIT_TYPE, BLEND_WORDS, EDIT_MASK, *texts)
    return Entries(columns, _rows(files, options.frame), has_bytes=True)


def _rows(files: list[TableFile], frame: bool) -> Iterator[Row]:
    for file in files:
        found = [_TYPE_FOLDER.fullmatch(part) for part in file.path.parts]
        number = next((each[0][0] for each in reversed(found) if each), None)
        for entry in file.rows(list(_WANTED)):
            row = _row(entry, frame)
            row.values["editing_type_id"] = number
            row.values["edit_type"] = EDIT_TYPES.get(number or "")
            if number is None:
                row.problems.append(f"the type is not known: {file.path} is in no folder of a type")
            yield row


def _row(entry: dict[str, Any], frame: bool) -> Row:
    row = Row(str(entry["id"]))
    row.image = picture_of(row, entry["image"], "image")
    row.values = {name: entry[name] for name in _CARRIED} | {
        "source_prompt": without_marks(entry["source_prompt"]),
        "target_prompt": without_marks(entry["target_prompt"]),
    }
    try:
        pairs = pairs_of(entry["blended_words"])
        row.values["blend_words"] = pairs[0] if len(pairs) == 1 else None
    except ValueError as error:
        row.problems.append(str(error))
    put_mask(row, _runs(entry["mask"]), frame=frame)
    return row


def _runs(text: str | None) -> Any:
    """The numbers of "start length start length ..."; None if it is something else."""
    parts = re.split(r"[\s,]+", (text or "").strip().strip("[]").strip())
    if parts == [""]:
        return [] if text is not None else None
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else None


SOURCE = Source(
    name="pie-bench-pp",
    about="Parquet of UB-CVML-Group/PIE_Bench_pp, one folder per type of edit",
    licence="cc-by-sa-4.0",
    read=read,
    hub_id="UB-CVML-Group/PIE_Bench_pp",
    takes=frozenset({"split", "frame"}),
)

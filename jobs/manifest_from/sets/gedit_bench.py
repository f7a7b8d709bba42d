"""GEdit-Bench: instructions in English and Chinese, without captions, masks or answers.

Format: stepfun-ai/Step1X-Edit (arXiv 2504.17761); the hub has it as `datasets` saves it to disk.
`input_image_raw` is the picture in its own size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from jobs.manifest_from.files import text_of
from jobs.manifest_from.source import (
    EDIT_TYPE,
    INSTRUCTION,
    TEXT,
    Entries,
    Options,
    Row,
    Source,
)
from jobs.manifest_from.tables import TableFile, picture_of, table_files

_WANTED = {
    "task_type": "text",
    "key": "text",
    "instruction": "text",
    "instruction_language": "text",
    "input_image_raw": "image",
}
_SUBSET = "Intersection_exist"
"""Carried as it is, if the files have it."""


def read(source: Path, options: Options) -> Entries:
    files = table_files(source, _WANTED, "GEdit-Bench", options.split)
    own = (pa.field("instruction_language", TEXT), pa.field("key", TEXT))
    more = [_SUBSET] if all(_SUBSET in file.schema.names for file in files) else []
    columns = (INSTRUCTION, EDIT_TYPE, *own, *(pa.field(name, pa.bool_()) for name in more))
    return Entries(columns, _rows(files, more), has_bytes=True)


def _rows(files: list[TableFile], more: list[str]) -> Iterator[Row]:
    for file in files:
        for entry in file.rows([*_WANTED, *more]):
            language = entry["instruction_language"]
            row = Row(f"{entry['task_type']}-{language}-{entry['key']}")
            row.image = picture_of(row, entry["input_image_raw"], "input_image_raw")
            row.values = {
                "instruction": text_of(entry, "instruction"),
                "edit_type": text_of(entry, "task_type"),
                "instruction_language": language,
                "key": entry["key"],
            } | {name: entry[name] for name in more}
            yield row


SOURCE = Source(
    name="gedit-bench",
    about="stepfun-ai/GEdit-Bench, as Arrow or Parquet",
    licence="mit, as the dataset's card says",
    read=read,
    hub_id="stepfun-ai/GEdit-Bench",
    takes=frozenset({"split"}),
)

"""Emu Edit's test set: instructions of seven tasks, with captions before and after.

Format: the dataset card of facebook/emu_edit_test_set (arXiv 2311.10089). The captions were
written by models, and are noisy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from jobs.manifest_from.files import text_of
from jobs.manifest_from.source import (
    EDIT_TYPE,
    INSTRUCTION,
    SOURCE_PROMPT,
    SPLIT,
    TARGET_PROMPT,
    TEXT,
    Entries,
    Options,
    Row,
    Source,
)
from jobs.manifest_from.tables import TableFile, picture_of, table_files

_WANTED = {
    "instruction": "text",
    "image": "image",
    "task": "text",
    "split": "text",
    "idx": "number",
    "hash": "text",
    "input_caption": "text",
    "output_caption": "text",
}


def read(source: Path, options: Options) -> Entries:
    files = table_files(source, _WANTED, "Emu Edit's test set", options.split)
    own = (pa.field("idx", pa.int64()), pa.field("hash", TEXT))
    columns = (SOURCE_PROMPT, TARGET_PROMPT, INSTRUCTION, EDIT_TYPE, SPLIT, *own)
    return Entries(columns, _rows(files), has_bytes=True)


def _rows(files: list[TableFile]) -> Iterator[Row]:
    for file in files:
        for entry in file.rows(list(_WANTED)):
            row = Row(f"{entry['split']}-{entry['task']}-{entry['idx']}")
            row.image = picture_of(row, entry["image"], "image")
            row.values = {
                "source_prompt": text_of(entry, "input_caption"),
                "target_prompt": text_of(entry, "output_caption"),
                "instruction": text_of(entry, "instruction"),
                "edit_type": text_of(entry, "task"),
                "split": text_of(entry, "split"),
                "idx": entry["idx"],
                "hash": entry["hash"],
            }
            yield row


SOURCE = Source(
    name="emu-edit",
    about="Parquet of facebook/emu_edit_test_set (validation, test)",
    licence="cc-by-nc-4.0: not for commercial use",
    read=read,
    hub_id="facebook/emu_edit_test_set",
    takes=frozenset({"split"}),
)

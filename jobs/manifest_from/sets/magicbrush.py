"""MagicBrush: instructions in turns, with a mask and the answer of each.

Formats: the dataset card of osunlp/MagicBrush (train and dev), and the folder of its zip (test):
edit_turns.json, images/<id>/<file>, global_descriptions.json (arXiv 2306.10012). A mask is the
picture with the region transparent, and may have another size (OSU-NLP-Group/MagicBrush#10).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.manifest_from.files import Pictures, list_of_objects, read_json, size_of, text_of
from jobs.manifest_from.masks import mask_of_picture, png_of
from jobs.manifest_from.source import (
    EDIT_MASK,
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
from pipeline.errors import ManifestError

_WANTED = {
    "img_id": "text",
    "turn_index": "number",
    "source_img": "image",
    "mask_img": "image",
    "instruction": "text",
    "target_img": "image",
}
_TURN = (pa.field("img_id", TEXT), pa.field("turn_index", pa.int64()))
_TURNS_NAME = "edit_turns.json"
_OUTPUT = re.compile(r"-output(\d+)\.")


def read(source: Path, options: Options) -> Entries:
    folders = [source, source / "test", source / "dev"] if source.is_dir() else []
    turns = [folder for folder in folders if (folder / _TURNS_NAME).is_file()]
    if not turns:
        files = table_files(
            source, _WANTED, f"MagicBrush (nor has it {_TURNS_NAME})", options.split
        )
        columns = (INSTRUCTION, EDIT_MASK, SPLIT, *_TURN)
        return Entries(columns, _rows(files), has_bytes=True, has_references=True)
    if options.split is not None:
        raise ManifestError(f"--split is for Parquet files; {turns[0]} has {_TURNS_NAME}")
    return _of_turns(turns[0])


def _rows(files: list[TableFile]) -> Iterator[Row]:
    for file in files:
        for entry in file.rows(list(_WANTED)):
            row = Row(f"{entry['img_id']}-{entry['turn_index']}")
            row.image = picture_of(row, entry["source_img"], "source_img")
            row.reference = picture_of(row, entry["target_img"], "target_img")
            row.values = {
                "instruction": text_of(entry, "instruction"),
                "split": file.split or None,
                "img_id": entry["img_id"],
                "turn_index": entry["turn_index"],
            }
            if (mask := picture_of(row, entry["mask_img"], "mask_img")) is not None:
                _put_mask(row, mask.data or b"")
            yield row


def _put_mask(row: Row, data: bytes) -> None:
    if (size := size_of(row)) is None:
        return
    try:
        row.values["edit_mask"] = png_of(mask_of_picture(data, size))
    except ValueError as error:
        row.problems.append(str(error))


def _of_turns(folder: Path) -> Entries:
    file = folder / _TURNS_NAME
    turns = list_of_objects(read_json(file), file, ["instruction"])
    described = folder / "global_descriptions.json"
    captions = read_json(described) if described.is_file() else {}
    if not isinstance(captions, dict):
        raise ManifestError(f"{described} must be an object of captions by id")
    prompts = (SOURCE_PROMPT, TARGET_PROMPT) if captions else ()
    columns = (*prompts, INSTRUCTION, EDIT_MASK, *_TURN)
    return Entries(columns, _rows_of_turns(folder, turns, captions), has_references=True)


def _rows_of_turns(
    folder: Path, turns: list[dict[str, Any]], captions: dict[str, Any]
) -> Iterator[Row]:
    pictures = Pictures([folder / "images"])
    for number, turn in enumerate(turns):
        before, after = text_of(turn, "input"), text_of(turn, "output")
        name = (before or after or "").partition("-")[0]
        index = _OUTPUT.search(after or "")
        row = Row(f"{name}-{index[1]}" if index else f"turn-{number}")
        pictures.put(row, before and f"{name}/{before}", "input")
        row.values = {
            "instruction": text_of(turn, "instruction"),
            "img_id": name or None,
            "turn_index": int(index[1]) if index else None,
        }
        if captions:
            of_image = captions.get(name)
            of_image = of_image if isinstance(of_image, dict) else {}
            row.values["source_prompt"] = text_of(of_image, before or "")
            row.values["target_prompt"] = text_of(of_image, after or "")
        if after is None:
            row.problems.append("the entry has no output")
        else:
            row.reference = pictures.get(row, f"{name}/{after}")
        _put_mask_file(row, pictures, name, text_of(turn, "mask"))
        yield row


def _put_mask_file(row: Row, pictures: Pictures, name: str, mask: str | None) -> None:
    if mask is None:
        row.problems.append("the entry has no mask")
        return
    found = pictures.get(row, f"{name}/{mask}")
    if found is not None and found.file is not None and found.file.is_file():
        _put_mask(row, found.file.read_bytes())


SOURCE = Source(
    name="magicbrush",
    about="Parquet of osunlp/MagicBrush (train, dev), or the test set's folder with "
    "edit_turns.json and images",
    licence="cc-by-4.0",
    read=read,
    hub_id="osunlp/MagicBrush",
    takes=frozenset({"split"}),
)

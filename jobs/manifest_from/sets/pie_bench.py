"""PIE-Bench: 700 photos and paintings with prompts, instruction, words and mask.

Format: cure-lab/PnPInversion, README.md and evaluation/evaluate.py (arXiv 2310.01506).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.manifest_from.files import Pictures, entries_file, read_json, size_of, text_of
from jobs.manifest_from.masks import mask_of_runs, png_of
from jobs.manifest_from.prompts import two_words, without_marks
from jobs.manifest_from.source import (
    BLEND_WORDS,
    EDIT_MASK,
    EDIT_TYPE,
    INSTRUCTION,
    SOURCE_PROMPT,
    TARGET_PROMPT,
    TEXT,
    Entries,
    Options,
    Row,
    Source,
)
from pipeline.errors import ManifestError

SIZE_PX = 512
"""Width and height of the masks."""
EDIT_TYPES = {
    "0": "random",
    "1": "change_object",
    "2": "add_object",
    "3": "delete_object",
    "4": "change_attribute_content",
    "5": "change_attribute_pose",
    "6": "change_attribute_color",
    "7": "change_attribute_material",
    "8": "change_background",
    "9": "change_style",
}
"""As the folders of pictures are called."""
_KEYS = ("image_path", "editing_prompt")


def read(source: Path, options: Options) -> Entries:
    names = ("mapping_file.json", "data/mapping_file.json")
    file = entries_file(source, options.mapping, names, "PIE-Bench")
    found = read_json(file)
    if not isinstance(found, dict) or not _are_entries(found.values()):
        raise ManifestError(
            f"{file} is not a mapping of PIE-Bench: it must be an object of entries with "
            f"{' and '.join(_KEYS)}"
        )
    folder = options.images or file.parent
    pictures = Pictures([folder / "annotation_images", folder])
    columns = [SOURCE_PROMPT, TARGET_PROMPT, INSTRUCTION]
    if _have(found, "editing_type_id"):
        columns += [EDIT_TYPE, pa.field("editing_type_id", TEXT)]
    columns += [BLEND_WORDS] if _have(found, "blended_word") else []
    columns += [EDIT_MASK] if _have(found, "mask") else []
    return Entries(tuple(columns), _rows(found, pictures, options.frame))


def _are_entries(values: Any) -> bool:
    return all(isinstance(each, dict) for each in values) and any(
        all(key in each for key in _KEYS) for each in values
    )


def _have(entries: Mapping[str, Any], key: str) -> bool:
    return any(key in entry for entry in entries.values())


def _rows(entries: Mapping[str, dict[str, Any]], pictures: Pictures, frame: bool) -> Iterator[Row]:
    for name, entry in entries.items():
        row = Row(name)
        pictures.put(row, entry.get("image_path"), "image_path")
        row.values = {
            "source_prompt": without_marks(entry.get("original_prompt")),
            "target_prompt": without_marks(entry.get("editing_prompt")),
            "instruction": text_of(entry, "editing_instruction"),
        }
        if "editing_type_id" in entry:
            number = str(entry["editing_type_id"])
            row.values |= {"edit_type": EDIT_TYPES.get(number), "editing_type_id": number}
            if number not in EDIT_TYPES:
                row.problems.append(f"editing_type_id {number!r} is none of PIE-Bench's")
        try:
            row.values["blend_words"] = two_words(entry.get("blended_word"))
        except ValueError as error:
            row.problems.append(str(error))
        if "mask" in entry:
            put_mask(row, entry["mask"], frame=frame)
        yield row


def put_mask(row: Row, runs: Any, *, frame: bool) -> None:
    """Sets a row's mask. One that cannot be read, or not of the picture's size, is a problem."""
    try:
        mask = mask_of_runs(runs, SIZE_PX, SIZE_PX, frame=frame)
    except ValueError as error:
        row.problems.append(str(error))
        return
    size = size_of(row)
    if size is not None and size != (SIZE_PX, SIZE_PX):
        row.problems.append(f"the picture has {size[0]}x{size[1]} px, its mask {SIZE_PX}x{SIZE_PX}")
        return
    row.values["edit_mask"] = png_of(mask)


SOURCE = Source(
    name="pie-bench",
    about="mapping_file.json beside annotation_images; with --mapping also the 55 entries of "
    "mapping_file_ti2i_benchmark.json",
    licence="by form from its authors; see their repository cure-lab/PnPInversion for terms",
    read=read,
    takes=frozenset({"mapping", "images", "frame"}),
)

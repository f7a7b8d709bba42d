"""MS-COCO ShapePrompts: objects of COCO with their outline and a prompt of what they become.

Format: shape-guided-diffusion/shape-guided-diffusion, mscoco_shape_prompts (arXiv 2212.00210):
COCO's JSON with `text` in every annotation. The source prompt is the name of the category.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.manifest_from.files import Pictures, entries_file, read_json, text_of
from jobs.manifest_from.masks import mask_of_segmentation, png_of
from jobs.manifest_from.source import (
    EDIT_MASK,
    SOURCE_PROMPT,
    SPLIT,
    TARGET_PROMPT,
    Entries,
    Options,
    Row,
    Source,
)
from pipeline.errors import ManifestError

_PARTS = ("annotations", "images", "categories")
_IMAGE_FOLDERS = ("train2017", "val2017", "images")


def read(source: Path, options: Options) -> Entries:
    folders = ("", "mscoco_shape_prompts/")
    names = [f"{folder}{split}.json" for folder in folders for split in ("val", "test")]
    files = [entries_file(source, options.mapping, names, "MS-COCO ShapePrompts")]
    if options.mapping is None and source.is_dir():
        files = [source / name for name in names if (source / name).is_file()]
    if options.split is not None:
        found = ", ".join(file.stem for file in files)
        files = [file for file in files if file.stem == options.split]
        if not files:
            raise ManifestError(f"{source} has no split {options.split!r}; there are {found}")
    read_files = [(file, _parts_of(file)) for file in files]
    own = (pa.field("category_id", pa.int64()), pa.field("image_id", pa.int64()))
    columns = (SOURCE_PROMPT, TARGET_PROMPT, EDIT_MASK, SPLIT, *own)
    return Entries(columns, _rows(read_files, options.images))


def _parts_of(file: Path) -> dict[str, list[dict[str, Any]]]:
    found = read_json(file)
    is_coco = isinstance(found, dict) and all(_are_objects(found.get(each)) for each in _PARTS)
    if not is_coco or not any("text" in each for each in found["annotations"]):
        raise ManifestError(
            f"{file} is not of MS-COCO ShapePrompts: it must be an object with "
            f"{', '.join(_PARTS)}, and annotations with text"
        )
    parts: dict[str, list[dict[str, Any]]] = found
    return parts


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _rows(
    files: list[tuple[Path, dict[str, list[dict[str, Any]]]]], images: Path | None
) -> Iterator[Row]:
    for file, parts in files:
        root = images or file.parent
        pictures = Pictures([root, *(root / name for name in _IMAGE_FOLDERS)])
        of_images = {each.get("id"): each for each in parts["images"]}
        names = {each.get("id"): each.get("name") for each in parts["categories"]}
        for annotation in parts["annotations"]:
            row = Row(str(annotation.get("id")))
            image = of_images.get(annotation.get("image_id"), {})
            pictures.put(row, image.get("file_name"), "image in images")
            row.values = {
                "source_prompt": names.get(annotation.get("category_id")),
                "target_prompt": text_of(annotation, "text"),
                "split": file.stem,
                "category_id": annotation.get("category_id"),
                "image_id": annotation.get("image_id"),
            }
            _put_mask(row, annotation.get("segmentation"), image)
            yield row


def _put_mask(row: Row, segmentation: Any, image: dict[str, Any]) -> None:
    width_px, height_px = image.get("width"), image.get("height")
    if type(width_px) is not int or type(height_px) is not int:
        row.problems.append("the entry's image has no width and height, so its mask is not drawn")
        return
    try:
        row.values["edit_mask"] = png_of(mask_of_segmentation(segmentation, width_px, height_px))
    except (ValueError, TypeError) as error:
        row.problems.append(str(error))


SOURCE = Source(
    name="shapeprompts",
    about="val.json and test.json of MS-COCO ShapePrompts; COCO's pictures in --images",
    licence="annotations of COCO cc-by-4.0, pictures under Flickr's terms; prompts not stated",
    read=read,
    takes=frozenset({"mapping", "images", "split"}),
)

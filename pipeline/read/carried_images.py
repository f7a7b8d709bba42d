"""Fetches the images among the carried columns that the manifest has as paths."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import pyarrow as pa
from PIL import Image

from pipeline.errors import RowError
from pipeline.manifest.arrow_types import is_list
from pipeline.manifest.carried import IMAGE_TYPE
from pipeline.redact import redact_url

_log = logging.getLogger(__name__)


def with_carried_images(table: pa.Table, read: Callable[[str], bytes], pool: Executor) -> pa.Table:
    """The work rows, with the files of their carried images in the field `fpe_data`.

    `read` returns the bytes at a URI or raises RowError. An image that cannot be read stays without
    bytes: it is not what is edited, and its path is in the output.
    """
    if "carried" not in table.column_names:
        return table
    column = table["carried"].combine_chunks()
    children = column.flatten()
    for place, item in enumerate(column.type):
        if IMAGE_TYPE in (item.type, item.type.value_type if is_list(item.type) else None):
            cells = children[place].to_pylist()
            list(pool.map(lambda image: _fetch(image, read), _images_of(cells)))
            children[place] = pa.array(cells, item.type)
    filled = pa.StructArray.from_arrays(children, fields=list(column.type), mask=column.is_null())
    place = table.column_names.index("carried")
    return table.set_column(place, table.schema.field(place), filled)


def _images_of(cells: list[Any]) -> list[dict[str, Any]]:
    each = [image for cell in cells for image in (cell if isinstance(cell, list) else [cell])]
    return [image for image in each if image is not None and image["fpe_uri"]]


def _fetch(image: dict[str, Any], read: Callable[[str], bytes]) -> None:
    """A file that is not an image is left alone too: a manifest must not copy any file into the
    output."""
    uri, why = image["fpe_uri"], "it is not an image"
    try:
        data = read(uri)
        if image_kind(data):
            image["fpe_data"] = data
            return
    except RowError as error:
        why = str(error)
    _log.warning("an image that the manifest carries is left out: %s: %s", redact_url(uri), why)


def image_kind(data: bytes) -> str:
    """The format of an encoded image by its header, such as "png"; "" for anything else."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return (image.format or "").lower()
    except Exception:  # noqa: BLE001 - Pillow's plugins raise what they like for hostile files
        return ""

"""The known columns of a manifest and their types, and cells that hold an image or a mask (a URI,
bytes, or Hugging Face's struct of both).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.manifest.labels import EXPECTED as EXPECTED_LABELS
from pipeline.manifest.labels import TARGET_LABELS, is_target_labels


@dataclass(frozen=True)
class ImageCell:
    """An image or a mask as a cell of the manifest gives it. For an empty cell all are empty.

    Attributes:
        uri: as the manifest has it; "" if the cell holds the bytes.
        data: the encoded bytes; None if the cell holds a URI.
        path: the name of the image in messages.
    """

    uri: str = ""
    data: bytes | None = None
    path: str = ""

    @classmethod
    def of(cls, value: Any) -> ImageCell:
        """Reads a cell. If it has both bytes and a path, the bytes are used."""
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path") or ""
        elif isinstance(value, bytes):
            data, path = value, ""
        else:
            data, path = None, value or ""
        return cls(path if data is None else "", data, path)

    @property
    def is_empty(self) -> bool:
        return not self.uri and self.data is None


KNOWN_COLUMNS = (
    "image",
    "target_prompt",
    TARGET_LABELS,
    "id",
    "source_prompt",
    "seed",
    "split",
    "guidance_scale",
    "negative_prompt",
    "replaced_fraction",
    "steps",
)
EDIT_TYPE = "edit_type"
"""The kind of change that a row's edits ask for: a text that is carried, or a list with one per
prompt."""


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without dictionary encoding and extension types."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    return kind


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_null(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_null(kind))


def _is_list_of_text(kind: pa.DataType) -> bool:
    types = pa.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and _is_text(plain_type(kind.value_type)))


def is_image_type(kind: pa.DataType) -> bool:
    """Whether cells of this type can hold images, see `ImageCell`."""
    if not pa.types.is_struct(kind):
        return _is_text(kind) or _is_bytes(kind)
    fields = {field.name: field.type for field in kind}
    return (
        bool(fields.keys() & {"bytes", "path"})
        and _is_bytes(fields.get("bytes", pa.null()))
        and _is_text(fields.get("path", pa.null()))
    )


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_null(kind))


def _is_number(kind: pa.DataType) -> bool:
    return _is_integer(kind) or bool(pa.types.is_floating(kind))


_EXPECTED: Mapping[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "image": (is_image_type, "text (a URI), or bytes, or struct<bytes: binary, path: string>"),
    "target_prompt": (lambda kind: _is_text(kind) or _is_list_of_text(kind), "text or lists of it"),
    TARGET_LABELS: (is_target_labels, EXPECTED_LABELS),
    "id": (lambda kind: _is_text(kind) or _is_integer(kind), "text or whole numbers"),
    "source_prompt": (_is_text, "text"),
    "seed": (_is_number, "whole numbers"),  # pandas makes floats of integers with a null
    "split": (_is_text, "text"),
    "guidance_scale": (_is_number, "numbers"),
    "negative_prompt": (_is_text, "text"),
    "replaced_fraction": (_is_number, "numbers"),
    "steps": (_is_number, "whole numbers"),
}
"""The type of every known column: a predicate, and its description for messages."""

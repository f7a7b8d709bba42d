"""The known columns of a manifest and their types, and cells that hold an image or a mask (a URI,
bytes, or Hugging Face's struct of both).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.manifest.arrow_types import converted, is_bytes, is_json, is_list, is_text, plain_type
from pipeline.manifest.features import class_names, features_of
from pipeline.manifest.labels import EXPECTED as EXPECTED_LABELS
from pipeline.manifest.labels import TARGET_LABELS, is_target_labels
from pipeline.manifest.region_columns import REGION_COLUMNS
from pipeline.manifest.words import json_value, json_words, words_of


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
INSTRUCTION = "instruction"
"""What edits are to change, for editors that read instructions: in the place of `target_prompt`."""
PROMPT_COLUMNS: Mapping[str, str] = {"target": "target_prompt", "instruction": INSTRUCTION}
"""Which column has the prompts of an editor, by `EditMethod.prompts`."""
OTHER_PROMPT = "other_prompt"
"""Among a batch's known values: those of the column for editors of the other kind."""
EDIT_TYPE = "edit_type"
"""The kind of change that a row's edits ask for: a text that is carried, or a list with one per
prompt."""


def _is_text(kind: pa.DataType) -> bool:
    return is_text(kind) or bool(pa.types.is_null(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return is_bytes(kind) or bool(pa.types.is_null(kind))


def _is_list_of_text(kind: pa.DataType) -> bool:
    return is_list(kind) and _is_text(kind.value_type)


def is_image_type(kind: pa.DataType) -> bool:
    """Whether cells of a plain type can hold images, see `ImageCell`."""
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
    types = pa.types
    return _is_integer(kind) or bool(types.is_floating(kind) or types.is_decimal(kind))


_EXPECTED: Mapping[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "image": (is_image_type, "text (a URI), or bytes, or struct<bytes: binary, path: string>"),
    "target_prompt": (lambda kind: are_prompts(kind), "text or lists of it"),
    TARGET_LABELS: (is_target_labels, EXPECTED_LABELS),
    "id": (lambda kind: _is_text(kind) or _is_number(kind), "text or whole numbers"),
    "source_prompt": (_is_text, "text"),
    "seed": (_is_number, "whole numbers"),  # pandas makes floats of integers with a null
    "split": (_is_text, "text"),
    "guidance_scale": (_is_number, "numbers"),
    "negative_prompt": (_is_text, "text"),
    "replaced_fraction": (_is_number, "numbers"),
    "steps": (_is_number, "whole numbers"),
}
"""The type of every known column: a predicate on plain types, and its description for messages."""
_MAY_BE_LISTS = ("target_prompt", INSTRUCTION, EDIT_TYPE, *REGION_COLUMNS)
_MAY_BE_CLASSES = ("target_prompt", INSTRUCTION, "source_prompt", "split", EDIT_TYPE)


def are_prompts(kind: pa.DataType) -> bool:
    """Whether a column of a plain type can hold prompts: a text, or a list of them, in each row."""
    return _is_text(kind) or _is_list_of_text(kind)


def known_type(name: str, schema: pa.Schema) -> pa.DataType:
    """The plain type in which a column is read. The classes of a class label are read as text."""
    kind = plain_type(schema.field(name).type)
    return pa.string() if _classes_of(name, schema) and pa.types.is_integer(kind) else kind


def _classes_of(name: str, schema: pa.Schema) -> tuple[str, ...]:
    return class_names(features_of(schema).get(name)) if name in _MAY_BE_CLASSES else ()


def known_values(name: str, column: pa.ChunkedArray, schema: pa.Schema) -> list[Any]:
    """The values of a column that the pipeline reads, as Python values.

    `schema`: that of the file, as `arrow_types.meant_schema` has it. Raises pa.ArrowException for
    values that do not fit their type, and ValueError for JSON, or the number of a class, that
    cannot be the value of such a column.
    """
    kind = schema.field(name).type
    values: list[Any] = converted(column, plain_type(kind)).to_pylist()
    if is_json(kind):
        return [None if value is None else _value_of_json(name, value) for value in values]
    if (classes := _classes_of(name, schema)) and pa.types.is_integer(plain_type(kind)):
        words = words_of(kind, classes)
        return [words(value) or None for value in values]
    return values


def _value_of_json(name: str, text: str) -> str | list[str | None]:
    """Text, or a list of texts: as fastparquet writes lists."""
    value = json_value(text)
    if not isinstance(value, list) or name not in _MAY_BE_LISTS:
        return json_words(text)
    if not all(each is None or isinstance(each, str) for each in value):
        raise ValueError(f"{text} must be a list of texts")
    return value

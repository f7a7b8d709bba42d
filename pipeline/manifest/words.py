"""How values of the manifest's columns become words: in prompts, and as labels.

The same value gives the same words whatever type it is stored in. A whole number is written without
a decimal point, also if it is stored as a float, as pandas does if a column has missing values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.manifest.arrow_types import is_json, plain_type
from pipeline.manifest.features import NO_CLASS

Words: TypeAlias = Callable[[Any], str]
"""Gives the words of a value, "" for a missing one. Raises ValueError for a value that has none."""

_MOST_EXACT = 2**53
"""Up to here floats of 64 bits hold every whole number."""


def has_words(kind: pa.DataType) -> bool:
    """Whether values of this type can become words."""
    plain = plain_type(kind)
    types = pa.types
    return not types.is_nested(plain) and not (
        types.is_binary(plain) or types.is_large_binary(plain)
    )


def words_of(kind: pa.DataType, classes: Sequence[str] = ()) -> Words:
    """How values of a column of this type become words.

    `kind`: as `arrow_types.meant_schema` has it. `classes`: the names of a class label.
    """
    if classes:
        return lambda value: _class_name(value, classes)
    if is_json(kind):
        return lambda value: "" if value is None else json_words(value)
    plain = plain_type(kind)
    if pa.types.is_float16(plain):
        return lambda value: "" if value is None else _float_words(value, np.float16)
    if pa.types.is_float32(plain):
        return lambda value: "" if value is None else _float_words(value, np.float32)
    if pa.types.is_floating(plain):
        return lambda value: "" if value is None else _float_words(value, float)
    if pa.types.is_decimal(plain):
        return lambda value: "" if value is None else format(value, "f")
    return lambda value: "" if value is None else str(value)


def is_fraction(kind: pa.DataType) -> bool:
    """Whether a type has numbers with several ways of writing them: 1.5, 1.50."""
    plain = plain_type(kind)
    return bool(pa.types.is_floating(plain) or pa.types.is_decimal(plain))


def are_equal_numbers(one: str, other: str) -> bool:
    """Whether two words are the same number; False if one of them is not a number."""
    try:
        return Decimal(one) == Decimal(other)
    except InvalidOperation:
        return False


def whole_number(value: float | Decimal) -> int | None:
    """The whole number that a value is; None if it is not one, or too large to be exact."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else None
    return int(value) if value.is_integer() and abs(value) <= _MOST_EXACT else None


def json_value(text: str) -> Any:
    """The value of a cell of JSON. Text that is not JSON, and cannot be meant to be, is itself."""
    try:
        return json.loads(text)
    except ValueError as error:
        if text.lstrip()[:1] in ("[", "{", '"'):
            raise ValueError(f"{_short(text)} is not valid JSON: {error}") from error
        return text


def json_words(text: str) -> str:
    """The words of a cell of JSON: text without its quotes, numbers as they are written."""
    value = json_value(text)
    if isinstance(value, list | dict):
        raise ValueError(f"{_short(text)} is JSON with several values, where one is needed")
    if isinstance(value, float):
        return _float_words(value, float)
    return "" if value is None else str(value)


def _float_words(value: float, kind: Callable[[float], Any]) -> str:
    """The shortest text that gives the value again in its own type: 0.1 for a float of 32 bits."""
    if math.isnan(value):
        return ""
    whole = whole_number(value)
    return str(kind(value)) if whole is None else str(whole)


def _class_name(value: int | None, classes: Sequence[str]) -> str:
    if value is None or value == NO_CLASS:
        return ""
    if not 0 <= value < len(classes):
        raise ValueError(f"class {value} has no name; there are {len(classes)}, from 0")
    return classes[value]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."

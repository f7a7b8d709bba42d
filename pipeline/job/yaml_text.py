"""Reads YAML and remembers the line of every value, so that an error message can name it.

Uses PyYAML and not ruamel.yaml, which keeps line numbers too: even in its YAML 1.1 mode ruamel.yaml
reads y and n as switches, and 1.0e3 and 1e3 as numbers, which PyYAML reads as text, and it accepts
unknown tags.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.errors import JobError

Path = tuple[str | int, ...]
"""The path of a value in a document: keys of mappings and 0-based indices of lists."""


@dataclasses.dataclass(frozen=True)
class Document:
    """A mapping read from YAML; `lines` holds the 1-based line of every value by its path."""

    name: str
    data: Mapping[str, Any]
    lines: Mapping[Path, int]

    def place(self, path: Path) -> str:
        """The line of a value, such as "job.yaml:12"; if it is missing, the line of its mapping."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return self.name


# YAML's constructors raise ValueError, not YAMLError, for a date like 2026-99-99.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def read_document(name: str, text: str) -> Document:
    """Parses a document. Raises JobError if it is not YAML or not a mapping, or if it has a key
    twice."""
    try:
        loader = yaml.SafeLoader(text)  # builds plain values only
    except yaml.YAMLError as error:  # a character that YAML does not have
        raise JobError(_what_is_wrong(name, error)) from error
    try:
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        if node is not None:
            _walk(node, (), lines, name, ())
        data = {} if node is None else loader.construct_document(node)
    except _NOT_YAML as error:
        raise JobError(_what_is_wrong(name, error)) from error
    finally:
        loader.dispose()
    data = {} if data is None else _joined(data)
    if not isinstance(data, dict):
        raise JobError(
            f"{name}: a job file is a mapping of keys to values, this one holds {kind_of(data)}"
        )
    return Document(name, data, lines)


def read_value(name: str, text: str) -> Any:
    """The value of a YAML text. Raises JobError if it is not valid YAML."""
    try:
        return _joined(yaml.safe_load(text))
    except _NOT_YAML as error:
        raise JobError(_what_is_wrong(name, error)) from error


_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _joined(value: Any) -> Any:
    """The value with one character in place of each surrogate pair.

    JSON is YAML, and programs write it in ASCII: a character beyond U+FFFF as two escapes.
    """
    if isinstance(value, str):
        return _PAIR.sub(
            lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), value
        )
    if isinstance(value, list):
        return [_joined(each) for each in value]
    if isinstance(value, dict):
        return {_joined(key): _joined(each) for key, each in value.items()}
    return value


def dotted(path: Path) -> str:
    """A path as it is typed in an override: ("prompts", "labels", 0) -> prompts.labels[0]."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def kind_of(value: object) -> str:
    """Describes a YAML value in words, such as "a list" or "the number 3"."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the switch {str(value).lower()}"
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a list" if isinstance(value, list) else "a mapping"


def _walk(
    node: yaml.Node, path: Path, lines: dict[Path, int], name: str, around: tuple[yaml.Node, ...]
) -> None:
    lines[path] = node.start_mark.line + 1
    if node in around:  # nodes compare by identity
        raise JobError(
            f"{name}:{lines[path]}: {dotted(path)}: an alias (*) refers to what contains it"
        )
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _walk(item, (*path, number), lines, name, (*around, node))
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = _joined(str(key_node.value))
            if not key.isprintable() and key.encode("utf-8", "replace").decode() != key:
                line = key_node.start_mark.line + 1
                raise JobError(f"{name}:{line}: the key {key!a} cannot be written as UTF-8")
            if key in seen:
                line = key_node.start_mark.line + 1
                where = dotted((*path, key))
                raise JobError(
                    f"{name}:{line}: {where}: this key is written twice; keep one of them"
                )
            seen.add(key)
            _walk(value_node, (*path, key), lines, name, (*around, node))
            lines[(*path, key)] = key_node.start_mark.line + 1


def _what_is_wrong(name: str, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"{name}: nested too deeply to be a job file"
    if isinstance(error, ValueError):
        return f"{name}: a value is not what it looks like: {error}. Quote it if it is text"
    if isinstance(error, yaml.reader.ReaderError):
        found = error.character if isinstance(error.character, int) else error.character[0]
        return (
            f"{name}: not YAML: character {error.position + 1} is {chr(found)!a}, which may "
            "not be in a YAML text"
        )
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or "not readable as YAML"
    context = getattr(error, "context", None)
    if mark is None:
        return f"{name}: {what}"
    because = f" ({context})" if context else ""
    return f"{name}:{mark.line + 1}: not YAML, column {mark.column + 1}: {what}{because}"

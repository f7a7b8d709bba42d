"""Writes a job as YAML that can be saved and run: every key with its value or default, and its
meaning."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.job.job import Job
from pipeline.job.problems import models_in

_WIDTH = 100


def job_as_yaml(job: Job | None = None) -> str:
    """Every key of a job file with its description as a comment.

    Without a job the values are the defaults; keys without a default are comments marked
    "required".
    """
    values = {} if job is None else job.model_dump(mode="json")
    return "\n".join(_section(Job, values, 0)).lstrip("\n") + "\n"


def _section(model: type[BaseModel], values: Mapping[str, Any], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in model.model_fields.items():
        if depth == 0:
            yield ""
        yield from _comment(field.description or "", indent)
        value = values[name] if name in values else _default(field)
        sections = models_in(field.annotation)
        if field.is_required() and name not in values:
            yield f"{indent}# {name}:    (required)"
        elif len(sections) == 1 and isinstance(value, Mapping) and not _holds_many(field):
            yield f"{indent}{name}:"
            yield from _section(sections[0], value, depth + 1)
        else:
            yield from _entry(name, value, indent)
            if len(sections) == 1 and (value is None or _holds_many(field)):
                yield from (f"{indent}# {line}".rstrip() for line in _section(sections[0], {}, 1))


def _holds_many(field: FieldInfo) -> bool:
    """Whether the field is a list of sections, or a mapping whose names the job file chooses."""
    return get_origin(field.annotation) in (dict, list, tuple)


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _entry(name: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, list | dict):
        text = yaml.safe_dump(
            value, sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=True
        )
        yield f"{indent}{name}: {text.rstrip()}"
        return
    text = yaml.safe_dump({name: value}, allow_unicode=True, width=math.inf)
    yield from (indent + line for line in text.rstrip("\n").split("\n"))


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(text, _WIDTH - len(indent) - 2, break_on_hyphens=False):
        yield f"{indent}# {line}"

"""Turns pydantic's errors into messages with the path, what is allowed, and what was found."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.job.renamed_keys import advice
from pipeline.job.yaml_text import Path, dotted, kind_of

_KIND_NAMES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
}
"""Pydantic's errors about a value's type, with the type that was expected."""

_LIMITS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong with a job. `text` begins with the dotted path."""

    path: Path
    text: str


def describe_errors(
    error: ValidationError, data: Mapping[str, Any], model: type[BaseModel]
) -> list[Problem]:
    """The problems behind a ValidationError, one per path, in the order pydantic found them."""
    by_path: dict[Path, list[_Found]] = collections.defaultdict(list)
    for details in error.errors(include_url=False):
        found = _locate(details, data)
        by_path[found.root].append(found)
    problems: dict[str, Problem] = {}
    for same_root in by_path.values():
        for problem in _describe(same_root, model):
            problems.setdefault(problem.text, problem)
    return list(problems.values())


@dataclasses.dataclass(frozen=True)
class _Found:
    """A pydantic error, its location split into the path in the data and the branch of a union."""

    details: ErrorDetails
    path: Path
    root: Path
    """The path down to the value whose type is a union; equal to `path` if there is no union."""
    branch: str
    value: object


def _locate(details: ErrorDetails, data: object) -> _Found:
    """Splits pydantic's location: steps that name a branch of a union are not part of the path."""
    path: list[str | int] = []
    root: Path | None = None
    branch = ""
    here: object = data
    for number, step in enumerate(details["loc"]):
        last = number == len(details["loc"]) - 1
        if _holds(here, step):
            here = here[step]  # type: ignore[index]
        elif not (last and details["type"] == "missing"):
            if root is None:
                root, branch = tuple(path), str(step)
            continue
        path.append(step)
    return _Found(details, tuple(path), tuple(path) if root is None else root, branch, here)


def _holds(value: object, step: str | int) -> bool:
    if isinstance(value, Mapping):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


def _describe(same_root: Sequence[_Found], model: type[BaseModel]) -> Iterator[Problem]:
    branches: dict[str, list[_Found]] = collections.defaultdict(list)
    for found in same_root:
        branches[found.branch].append(found)
    branches = {branch: _without_misspelt(inside) for branch, inside in branches.items()}
    if len(branches) > 1:
        fitting = [b for b in branches.values() if not any(_is_wrong_kind(f) for f in b)]
        if not fitting:
            yield _wrong_kinds(same_root)
            return
        branches = {"": min(fitting, key=len)}
    for found in itertools.chain.from_iterable(branches.values()):
        text = _message(found, model)
        yield Problem(found.path, f"{dotted(found.path)}: {text}" if found.path else text)


def _without_misspelt(branch: Sequence[_Found]) -> list[_Found]:
    """Without the keys that are missing because they are there with a spelling mistake."""
    unknown = [str(f.path[-1]) for f in branch if f.details["type"] == "extra_forbidden"]
    return [
        found
        for found in branch
        if found.details["type"] != "missing"
        or not difflib.get_close_matches(str(found.path[-1]), unknown)
    ]


def _is_wrong_kind(found: _Found) -> bool:
    return found.path == found.root and found.details["type"] in _KIND_NAMES


def _wrong_kinds(same_root: Sequence[_Found]) -> Problem:
    """One problem for a value that has none of the types of a union."""
    path, value = same_root[0].root, same_root[0].value
    kinds = dict.fromkeys(
        _KIND_NAMES.get(f.details["type"], "") for f in same_root if f.path == path
    )
    wanted = " or ".join(kind for kind in kinds if kind)
    return Problem(path, f"{dotted(path)}: must be {wanted} (got {kind_of(value)}){_hint(value)}")


def _message(found: _Found, model: type[BaseModel]) -> str:
    details = found.details
    kind, context = details["type"], details.get("ctx", {})
    got = kind_of(found.value)
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return _unknown_key(found.path, model)
    if kind in _KIND_NAMES:
        return f"must be {_KIND_NAMES[kind]} (got {got}){_hint(found.value)}"
    if kind in _LIMITS:
        name, sign = _LIMITS[kind]
        return f"must be {sign} {context[name]} (got {_short(found.value)})"
    if kind == "literal_error":
        return f"must be {context['expected']} (got {got})"
    if kind == "string_too_short" and not found.value:
        return "must not be empty"
    if kind == "value_error":
        return str(context.get("error", details["msg"]))
    return f"{details['msg'].replace('Input should', 'must')} (got {got})"


def _unknown_key(path: Path, model: type[BaseModel]) -> str:
    of_version_0_1 = advice(path, lambda key: has_key(model, key))
    if of_version_0_1 is not None:
        return of_version_0_1
    allowed = allowed_keys(model, path[:-1])
    near = difflib.get_close_matches(str(path[-1]), allowed, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown key{meant} Allowed here: {', '.join(allowed)}"


def allowed_keys(model: type[BaseModel], path: Path) -> list[str]:
    """The keys a job may hold at a path, in the order of the model."""
    models = [model]
    for step in path:
        fields = [m.model_fields[step] for m in models if step in m.model_fields]
        if fields:  # else a key or index inside a mapping or list, such as judge.rules
            models = [m for field in fields for m in models_in(field.annotation)]
    return list(dict.fromkeys(name for m in models for name in m.model_fields))


def has_key(model: type[BaseModel], path: Path) -> bool:
    """Whether a job may hold a key, named by its path from the top."""
    models, fields = [model], list[FieldInfo]()
    for step in path:
        fields = [m.model_fields[str(step)] for m in models if str(step) in m.model_fields]
        models = [m for field in fields for m in models_in(field.annotation)]
    return bool(fields)


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The pydantic models an annotation names, through unions and containers."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def _hint(value: object) -> str:
    """The usual cause if YAML reads a value differently from what was meant."""
    if isinstance(value, bool):
        return "; YAML reads yes, no, on and off as switches: put quotes around the word"
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value):
        return "; write it without quotes, and 1e-3 as 1.0e-3"
    return ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

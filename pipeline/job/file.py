"""Reads a job file and `key=value` overrides into a Job, or raises one error with all mistakes.

`load_job` takes a file or a mapping, `load_job_of_run` the config.yaml of a run folder.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.errors import JobError
from pipeline.job.job import Job
from pipeline.job.problems import describe_errors
from pipeline.job.renamed_keys import in_todays_keys
from pipeline.job.rules_file import with_rules_read
from pipeline.job.yaml_text import Document, Path, dotted, kind_of, read_document, read_value
from pipeline.redact import is_redacted
from pipeline.storage.folder import Folder

CONFIG_NAME = "config.yaml"
_MAPPING_NAME = "job"
"""The name in messages of a job that was not read from a file."""


def load_job(
    source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Job:
    """The job of a YAML file, or of a mapping with a job file's keys, with overrides applied.

    `overrides`: texts such as "edit.steps=20", whose values are YAML; a later one wins. If
    `judge.rules` names a file, that is read too. Raises JobError; its message has one line per
    problem: file, line, YAML path, and what is allowed.
    """
    if isinstance(source, Mapping):
        document = Document(_MAPPING_NAME, source, {})
    else:
        document = _read_file(pathlib.Path(source))
    return _validated(apply_overrides(document, overrides))


def with_overrides(job: Job, overrides: Sequence[str]) -> Job:
    """A job with overrides applied, as `load_job` applies them. Raises JobError."""
    return load_job(job.model_dump(mode="json"), overrides) if overrides else job


def _validated(overridden: Overridden) -> Job:
    data = with_rules_read(overridden.data, overridden.place(("judge", "rules")))
    try:
        return Job.model_validate(data)
    except ValidationError as error:
        problems = describe_errors(error, data, Job)
        lines = [f"{overridden.place(problem.path)}: {problem.text}" for problem in problems]
        raise JobError("\n".join(lines)) from error


def load_job_of_run(
    run_folder: str,
    overrides: Sequence[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> Job:
    """The job as it ran, from the config.yaml of a run folder, with overrides.

    `storage_options`: fsspec's, to open the folder. Raises JobError, and StorageError if the store
    cannot be reached.
    """
    folder = Folder.open(run_folder, storage_options)
    if not folder.exists(CONFIG_NAME):
        raise JobError(f"{run_folder}: no {CONFIG_NAME} there; name a run folder or a job file")
    document = read_document(folder.url_of(CONFIG_NAME), folder.read(CONFIG_NAME).decode())
    document = dataclasses.replace(document, data=in_todays_keys(document.data))
    job = _validated(apply_overrides(document, overrides))
    if any(is_redacted(url) for url in job.manifest_urls):
        raise JobError(
            f"{document.name}: the manifest's URL had a secret in it, which was not saved; "
            "name the job file instead of the run folder"
        )
    return job.model_copy(update={"output": folder.url})  # it may have been moved


def is_job_file(name: str) -> bool:
    """Whether a command's argument names a job file; if not, it names a run folder."""
    return name.endswith((".yaml", ".yml"))


@dataclasses.dataclass(frozen=True)
class Overridden:
    """A document after overrides; `origins` has the override that set each value."""

    document: Document
    data: Mapping[str, Any]
    origins: Mapping[Path, str]

    def place(self, path: Path) -> str:
        """Where the value at a path was set: "job.yaml:12" or "override edit.steps=0"."""
        inside = [o for place, o in self.origins.items() if path and place[: len(path)] == path]
        if inside and path not in self.document.lines:  # only overrides made this mapping
            return f"override {quoted(inside[0])!r}"
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return f"override {quoted(self.origins[path[:length]])!r}"
            if path[:length] in self.document.lines:
                break
        return self.document.place(path)


def quoted(override: str) -> str:
    """An override for messages. Values of storage options are left out: they may be secrets."""
    key, equals, text = override.partition("=")
    return f"{key}{equals}..." if key.startswith("storage") and text else override


def apply_overrides(document: Document, overrides: Sequence[str]) -> Overridden:
    """Applies each override (`dotted.key=YAML value`) to a copy of the document, in order.

    Mappings that a key needs are created.
    """
    data: dict[str, Any] = copy.deepcopy(dict(document.data))
    origins: dict[Path, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        steps = key.strip().split(".")
        if not equals or not all(steps):
            raise JobError(
                f"override {quoted(override)!r}: expected dotted.key=value, such as edit.steps=20"
            )
        value = read_value(f"override {quoted(override)!r}", text)
        holder = data
        for depth, step in enumerate(steps[:-1], start=1):
            inner = holder.get(step)
            if inner is None:
                inner = holder[step] = {}
            if not isinstance(inner, dict):
                raise JobError(
                    f"override {quoted(override)!r}: {dotted(tuple(steps[:depth]))} is "
                    f"{kind_of(inner)}, so nothing can be set inside it; override it as a whole"
                )
            holder = inner
        holder[steps[-1]] = value
        origins[tuple(steps)] = override
    return Overridden(document, data, origins)


def _read_file(file: pathlib.Path) -> Document:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise JobError(f"{file}: there is no such job file{_nearby(file)}") from error
    except IsADirectoryError as error:
        raise JobError(f"{file}: this is a folder; name a job file{_nearby(file / '*')}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{file}: not UTF-8 text; a job file is YAML") from error
    except OSError as error:
        raise JobError(f"{file}: cannot be read: {error.strerror}") from error
    return read_document(str(file), text)


def _nearby(file: pathlib.Path) -> str:
    """A hint that names the job files next to a missing one."""
    found = sorted(path.name for path in file.parent.glob("*.y*ml"))[:8]
    return f"; {file.parent} holds {', '.join(found)}" if found else ""

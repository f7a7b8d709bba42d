"""Reads the file that a job's `judge.rules` may name; `fpe calibrate` writes such files.

    judge:
      rules: rules.yaml    # or a URL; a path is relative to the working directory

When the job is loaded, the rules replace the name. So config.yaml has the rules themselves, and a
later change of the file does not affect the run.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from fpe_core.judging.rules import Rules
from pipeline.errors import JobError, StorageError
from pipeline.job.credentials import refuse_credentials_in_url
from pipeline.job.judge import RuleSection
from pipeline.job.problems import describe_errors
from pipeline.job.section import Section
from pipeline.job.yaml_text import Document, read_document
from pipeline.redact import redact_url
from pipeline.storage.folder import Folder


class _JudgeOfFile(Section):
    rules: dict[str, list[RuleSection]] = Field(description="rules by type of edit")


class _RulesFile(Section):
    judge: _JudgeOfFile = Field(description="holds the rules, as in a job file")


def with_rules_read(data: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """A job's data with a file name in `judge.rules` replaced by the rules; else the same data.

    Raises JobError if the file cannot be read (the message has `place`), or if it is not valid (the
    message has the file's own line and the path of the key).
    """
    judge = data.get("judge")
    if not isinstance(judge, Mapping) or not isinstance(judge.get("rules"), str):
        return data
    options = data.get("storage_options")
    url, options = judge["rules"], options if isinstance(options, Mapping) else {}
    read = _rules_of(_read(url, options, place))
    return {**data, "judge": {**judge, "rules": read}}


def read_rules(url: str) -> Rules:
    """The rules of a file, without a job. Raises JobError."""
    rules = _rules_of(_read(url, {}, "rules"))
    return Rules.from_dict(rules)


def _rules_of(document: Document) -> dict[str, Any]:
    try:
        _RulesFile.model_validate(document.data)
    except ValidationError as error:
        problems = describe_errors(error, document.data, _RulesFile)
        lines = [f"{document.place(problem.path)}: {problem.text}" for problem in problems]
        raise JobError("\n".join(lines)) from error
    return dict(document.data["judge"]["rules"])


def _read(url: str, storage_options: Mapping[str, Any], place: str) -> Document:
    subject = f"{place}: judge.rules: {redact_url(url)!r}"
    try:
        refuse_credentials_in_url(url)
        parent, name = posixpath.split(url)
        options = storage_options if "://" in url else {}
        text = Folder.open(parent or ".", options).read(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise JobError(f"{subject} is not UTF-8 text; a file of rules is YAML or JSON") from error
    except (StorageError, ValueError) as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        why = "there is no such file" if missing else str(error)
        raise JobError(
            f"{subject}: {why}; give rules by type of edit, or a file that fpe calibrate wrote"
        ) from error
    return read_document(redact_url(url), text)

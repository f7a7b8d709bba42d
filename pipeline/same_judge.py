"""Whether a job judges as the edits of its run folder were judged: a verdict is final.

Rules are compared type by type, for the types that the ledger has edits of, so that a job may bring
rules for a new type. Models and the gate count as soon as anything was judged. What else the
section says may change: where models compute, which further scores there are, how rejected edits
are tried again, whether they are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow.compute as pc
import yaml
from pydantic import ValidationError

from pipeline.errors import JobError, StorageError
from pipeline.judge_section import JudgeSection
from pipeline.ledger import Ledger
from pipeline.outcome import Outcome
from pipeline.section import Section
from pipeline.storage import Folder

_FOR_ALL_TYPES = ("clip", "structure", "lpips", "reproduction")
"""Settings that a verdict depends on, whatever the type of the edit."""


def refuse_other_judge(folder: Folder, config: str, judge: JudgeSection, ledger: Ledger) -> None:
    """Refuses a judge where the folder's last job judged otherwise, and left verdicts.

    `config`: the file in the folder that has that job. One that is not there, or has no judge that
    this release can read, is no reason to refuse.

    Raises JobError if it does, and StorageError if the store does not answer.
    """
    before = _judge_of(folder, config)
    if before is None or before == judge:
        return
    found = list(_differences(before, judge, _judged_types(ledger)))
    if found:
        raise JobError(
            f"{folder.url} holds edits judged by another judge ({'; '.join(found)}), and a verdict "
            "is final: give the job another output, or the judge of before, which is in "
            f"{folder.url_of(config)}"
        )


def _judge_of(folder: Folder, config: str) -> JudgeSection | None:
    try:
        data = folder.read(config)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise  # a store that does not answer is no leave to judge otherwise
    try:
        return JudgeSection.model_validate(yaml.safe_load(data)["judge"])
    except (yaml.YAMLError, ValidationError, KeyError, TypeError):
        return None


def _judged_types(ledger: Ledger) -> set[str]:
    """The types of the edits that were accepted or rejected, "" for those without one."""
    found: set[str] = set()
    for table in ledger.outcomes():
        judged = table.filter(pc.not_equal(table["outcome"], Outcome.FAILED.value))
        found |= set(pc.unique(judged["edit_type"]).to_pylist())
    return found


def _differences(before: JudgeSection, now: JudgeSection, types: Collection[str]) -> Iterator[str]:
    """What decides on edits of these types and is not the same, for people."""
    if not types:
        return
    for name in _FOR_ALL_TYPES:
        was, becomes = (getattr(section, name) for section in (before, now))
        if was != becomes:
            yield f"judge.{name} was {_text(was)}, is {_text(becomes)}"
    rules_before, rules_now = before.to_rules(), now.to_rules()
    for edit_type in sorted(types):
        if rules_before.of(edit_type) != rules_now.of(edit_type):
            of = f" of {edit_type}" if edit_type else " without a type"
            yield f"other judge.rules for edits{of}"


def _text(value: object) -> str:
    return str(value.model_dump()) if isinstance(value, Section) else str(value)

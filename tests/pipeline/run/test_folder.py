"""A folder keeps its judge: what would mix verdicts is refused, what would not is let through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from fpe_core.judging.rules import RejectReason
from pipeline.errors import JobError, StorageError
from pipeline.job.job import Job
from pipeline.job.judge import JudgeSection
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import EditKey, EditOutcome
from pipeline.run.folder import CONFIG_FILE, refuse_other_judge
from pipeline.storage.folder import Folder
from tests.builders.judged_run import RULES, accepted, labelled_job, rejected, write_run
from tests.servers.stores import Store

STRICTER = {**RULES, "colour": [{"score": "changed_share", "at_least": 0.1, "reason": "no_change"}]}
STYLE = {"style": [{"score": "ssim", "at_most": 0.9, "reason": "no_change"}]}


def half_rejected(number: int, key: EditKey) -> EditOutcome:
    if number % 2:
        return rejected(number, key, RejectReason.NO_CHANGE, changed_share=0.0)
    return accepted(number, key, changed_share=0.5)


def judge_of(**values: Any) -> JudgeSection:
    return JudgeSection.model_validate({"edit_type": "colour", "rules": RULES, **values})


@pytest.fixture
def image(picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]) -> bytes:
    return png(picture(0))


@pytest.fixture
def job(store: Store, tiny_checkpoint: Path, image: bytes) -> Job:
    """Finished: its edits of colour are judged by RULES."""
    job = labelled_job(store, str(tiny_checkpoint))
    write_run(job, image, half_rejected)
    return job


def refuse(job: Job, judge: JudgeSection) -> None:
    folder = Folder.open(job.output, job.storage_options)
    refuse_other_judge(folder, CONFIG_FILE, judge, Ledger.open(folder))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rules": STRICTER}, "other judge.rules for edits of colour"),
        ({"rules": {}}, "other judge.rules for edits of colour"),
        ({"structure": None}, "judge.structure was builtin:still-life, is None"),
        ({"clip": "openai/clip"}, "judge.clip was builtin:still-life, is openai/clip"),
        ({"reconstruction": {"autoencoder_psnr_db_at_least": 22.0}}, "judge.reconstruction was"),
    ],
)
def test_another_judge_is_refused(job: Job, values: dict[str, Any], named: str) -> None:
    with pytest.raises(JobError, match=named) as error:
        refuse(job, judge_of(**values))
    assert "give the job another output" in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rules": RULES | STYLE, "edit_type": "style"},
        {"device": "cpu"},
        {"rejected": "drop"},
        {"retries": {"most": 1}},
    ],
)
def test_what_no_verdict_depends_on_may_change(job: Job, values: dict[str, Any]) -> None:
    refuse(job, judge_of(**values))


def test_a_judge_that_0_1_stored_is_compared_as_any(job: Job) -> None:
    """A section that could not be read would be no reason to refuse, whatever it said."""
    folder = Folder.open(job.output, job.storage_options)
    config = yaml.safe_load(folder.read(CONFIG_FILE))
    gate = config["judge"].pop("reconstruction")
    config["judge"]["reproduction"] = {**gate, "inversion_psnr_db_at_least": None}
    folder.replace(CONFIG_FILE, yaml.safe_dump(config).encode())
    refuse(job, judge_of())
    with pytest.raises(JobError, match=r"other judge\.rules for edits of colour"):
        refuse(job, judge_of(rules=STRICTER))


def test_without_verdicts_any_judge_may_come(
    store: Store, tiny_checkpoint: Path, image: bytes
) -> None:
    job = labelled_job(store, str(tiny_checkpoint))
    write_run(job, image, lambda _, key: key.failed("source_missing", "not there"))
    refuse(job, judge_of(rules=STRICTER))


def test_a_store_that_does_not_answer_is_no_leave_to_judge_otherwise(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    refuse_other_judge(folder, CONFIG_FILE, judge_of(), Ledger.open(folder))  # there is none yet
    (tmp_path / CONFIG_FILE).mkdir()  # there, and nobody can read it
    with pytest.raises(StorageError, match=CONFIG_FILE):
        refuse_other_judge(folder, CONFIG_FILE, judge_of(), Ledger.open(folder))

"""`judge.rules` of a job file may name a file of rules."""

from __future__ import annotations

import json
import pathlib

import fsspec
import pytest
import yaml

from fpe_core.judging.rules import Rules
from pipeline.errors import JobError
from pipeline.job.file import load_job

RULES = {"colour": [{"score": "ssim", "at_least": 0.5, "reason": "structure_lost"}], "other": []}
JOB = "manifest: in.parquet\noutput: out\njudge:\n  clip: null\n  rules: %s\n"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job_with(rules: str) -> pathlib.Path:
    file = pathlib.Path("jobs/job.yaml")
    file.parent.mkdir(exist_ok=True)
    file.write_text(JOB % rules, encoding="utf-8")
    return file


@pytest.mark.parametrize("write", [yaml.safe_dump, json.dumps], ids=["yaml", "json"])
@pytest.mark.parametrize("where", ["rules.yaml", "sub/rules.yaml", "memory://calib/rules.yaml"])
def test_the_rules_of_a_file_take_its_place(write: object, where: str) -> None:
    assert callable(write)
    if "/" in where and "://" not in where:
        pathlib.Path(where).parent.mkdir()
    with fsspec.open(where, "w") as opened:
        opened.write(write({"judge": {"rules": RULES}}))
    job = load_job(job_with(where))
    assert job.judge is not None
    assert job.judge.to_rules() == Rules.from_dict(RULES)
    again = job.model_dump(mode="json")["judge"]["rules"]
    assert again["colour"][0]["at_least"] == 0.5, "config.yaml holds the rules, not the name"


def test_an_override_may_name_the_file() -> None:
    pathlib.Path("rules.yaml").write_text(yaml.safe_dump({"judge": {"rules": RULES}}))
    job = load_job(job_with("{}"), ["judge.rules=rules.yaml"])
    assert job.judge is not None
    assert job.judge.to_rules() == Rules.from_dict(RULES)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "jobs/job.yaml:5: judge.rules: 'rules.yaml': there is no such file; give rules"),
        (
            "judge:\n  rules:\n    colour:\n    - {score: ssim, at_leest: 1, reason: off_target}",
            "rules.yaml:4: judge.rules.colour[0].at_leest: unknown key; did you mean 'at_least'?",
        ),
        (
            "judge: {rules: {colour: [{score: beauty, at_least: 1, reason: off_target}]}}",
            "rules.yaml:1: judge.rules.colour[0]: no score 'beauty'",
        ),
        ("colour: []", "rules.yaml:1: colour: unknown key; Allowed here: judge"),
        ("colour: []", "rules.yaml: judge: is required"),
        ("judge: {rules: other.yaml}", "rules.yaml:1: judge.rules: must be a mapping"),
        ("judge: [", "rules.yaml:1: not YAML"),
        (b"\xff\xfe", "jobs/job.yaml:5: judge.rules: 'rules.yaml' is not UTF-8 text"),
        (
            "judge: {rules: {other: [{score: text_score, at_least: 1, reason: off_target}]}}",
            "jobs/job.yaml:3: judge: text_score needs a model: set clip",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_file_it_is_in(
    content: str | bytes | None, expected: str
) -> None:
    if content is not None:
        data = content.encode() if isinstance(content, str) else content
        pathlib.Path("rules.yaml").write_bytes(data)
    with pytest.raises(JobError) as caught:
        load_job(job_with("rules.yaml"))
    assert any(line.startswith(expected) for line in str(caught.value).splitlines()), caught.value


def test_a_folder_and_a_secret_are_no_rules() -> None:
    pathlib.Path("rules").mkdir()
    with pytest.raises(JobError, match=r"job.yaml:5: judge.rules: 'rules'"):
        load_job(job_with("rules"))
    with pytest.raises(JobError) as caught:
        load_job(job_with("https://me:hunter2@example.com/rules.yaml"))
    assert "hunter2" not in str(caught.value)

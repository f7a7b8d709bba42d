"""`fpe config show` prints every key, and what it prints is a job file again."""

from __future__ import annotations

from collections.abc import Iterator

import yaml
from pydantic import BaseModel

from jobs.job_file.ready_made import BUILTIN_FOLDER
from jobs.job_file.show import job_as_yaml
from pipeline.job.file import load_job
from pipeline.job.job import Job
from pipeline.job.problems import models_in


def fields_of(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield name, field.description or ""
        inner = models_in(field.annotation)
        if len(inner) == 1:
            yield from fields_of(inner[0])


def test_every_key_is_shown_with_what_it_means() -> None:
    shown = job_as_yaml()
    prose = " ".join(line.lstrip("# ") for line in shown.splitlines())
    for name, description in fields_of(Job):
        assert f"{name}:" in shown
        assert description, f"{name} has no description"
        assert description in prose


def test_defaults_and_the_required_keys_make_a_job() -> None:
    data = yaml.safe_load(job_as_yaml())
    assert "manifest" not in data
    assert Job.model_validate({**data, "manifest": "m", "output": "o"}) == Job(
        manifest="m", output="o"
    )


def test_a_shown_job_is_the_job() -> None:
    for file in BUILTIN_FOLDER.glob("*.yaml"):
        job = load_job(
            file, ["edit.layers={first: 3, last: 9}", "storage_options={endpoint_url: 'http://x'}"]
        )
        assert Job.model_validate(yaml.safe_load(job_as_yaml(job))) == job

"""What the README shows is true, and short: its job is a job, its commands exist, its codes are."""

from __future__ import annotations

import pathlib
import re

import pytest
import typer.main
import yaml

from jobs.cli import app
from pipeline.job.job import Job

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_WORDS = 1800


def test_it_is_read_in_ten_minutes() -> None:
    assert len(README.split()) <= MOST_WORDS


def test_the_job_file_is_a_job() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert Job.model_validate(yaml.safe_load(shown)).output == "out/recoloured"


def test_the_commands_exist_and_all_are_shown() -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"\bfpe (\w+)", README)) == commands


def test_overrides_name_real_keys() -> None:
    shown = re.findall(r"fpe run \S+ ([^#`\n]+)", README)
    keys = [pair.split("=")[0] for line in shown for pair in line.split()]
    assert keys
    for key in keys:
        section, _, name = key.partition(".")
        field = Job.model_fields[section]
        assert not name or name in field.annotation.model_fields, key  # type: ignore[union-attr]


def test_what_was_measured_says_with_what_and_when() -> None:
    """A table of figures without its command, date and machine cannot be checked by anybody."""
    for heading in ("## How fast", "## How good"):
        section = README[README.index(heading) :].split("\n## ")[0]
        assert re.search(r"`fpe\s+bench\s", section), heading
        assert re.search(r"\b20\d\d-\d\d-\d\d\b", section), heading
        assert re.search(r"AMD|Intel|NVIDIA", section), heading


@pytest.mark.parametrize("name", ["demo", "test"])
def test_make_targets_are_there(name: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    shown = set(re.findall(r"^    make (\w+)", README, re.M))
    assert name in shown <= set(targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

"""What the README shows is true: its job is a job, its commands exist, its links lead somewhere."""

from __future__ import annotations

import pathlib
import re

import pytest
import typer.main
import yaml

from jobs.cli import app
from jobs.terminal import exits
from pipeline.job.job import Job

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_job_file_is_a_job() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert Job.model_validate(yaml.safe_load(shown)).output == "out/recoloured"


def test_sections_are_sections_of_a_job() -> None:
    fragments = re.findall(r"```yml\n(.*?)```", README, re.DOTALL)
    assert len(fragments) >= 2
    for fragment in fragments:
        Job.model_validate({"manifest": "m", "output": "o", **yaml.safe_load(fragment)})


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


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!https?:)[^)]+)\)", README))
def test_links_lead_to_files(target: str) -> None:
    assert (ROOT / target).exists()


def test_exit_codes_are_those_of_the_program() -> None:
    table = README[README.index("## Exit codes") : README.index("## Architecture")]
    shown = {
        int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for code in row.split(",")
    }
    constants = {
        exits.OK,
        exits.STOPPED,
        exits.USAGE,
        exits.DEFECT,
        exits.IN_USE,
        exits.INTERRUPTED,
        exits.TERMINATED,
    }
    assert shown == constants


def test_both_make_targets_are_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"^    make (\w+)", README, re.M)) <= set(targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

"""What the pages under docs/ show is true: commands, keys, codes, links, messages."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from jobs.cli import app
from pipeline.job import Job
from pipeline.outcome import FailureCode

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
GAP = "…"
"""Stands for what differs in a message that is quoted."""


def commands() -> Iterator[Any]:
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("    fpe "):
                yield pytest.param(
                    line.split(" #")[0].split(), id=f"{page.stem}: {line.strip()[:60]}"
                )


def literals() -> list[str]:
    """Every text in the program; a GAP where it has a value put in."""
    found = []
    for file in (
        f for floor in ("fpe_core", "pipeline", "jobs") for f in (ROOT / floor).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else GAP for p in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_page_is_named_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"(docs/{page.name})" not in readme] == []


@pytest.mark.parametrize("words", list(commands()))
def test_commands_exist_with_these_options(words: list[str]) -> None:
    here: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(here, "commands"):
        here = here.commands[rest.pop(0)]
    options = {
        name for parameter in here.params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in rest:
        if word.startswith("--"):
            assert word in options
        elif "=" in word:
            section, _, name = word.split("=")[0].partition(".")
            if here.name in ("run", "plan", "submit", "show"):
                annotation: Any = Job.model_fields[section].annotation
                assert not name or name in annotation.model_fields


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: pathlib.Path) -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_every_failure_code_has_its_line() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", TROUBLES, re.M)
    assert set(rows) >= {code.value for code in FailureCode}


def test_messages_that_are_quoted_are_messages() -> None:
    said = literals()
    first_column = re.findall(r"^\| ([^|]*)", TROUBLES, re.M)
    codes = [text for cell in first_column for text in re.findall(r"`([^`]*)`", cell)]
    quoted = [text for text in codes if " " in text]
    assert len(quoted) > 15
    unknown = [
        text
        for text in quoted
        if not any(re.search(".*".join(map(re.escape, text.split(GAP))), each) for each in said)
    ]
    assert unknown == []

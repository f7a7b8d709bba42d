"""What the pages under docs/ show is true: commands, keys, codes, links, messages."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
import yaml

from jobs.cli import app
from pipeline.job.job import Job
from pipeline.ledger.outcome import FailureCode

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CLUSTER_FILES = sorted((ROOT / "jobs" / "cluster").glob("*.*"))
OPERATING = ("ray", "kubectl", "systemctl", "crontab", "journalctl")
"""Programs that a page cannot be tried with on every machine."""
MARKS = ("(cluster)", "(root)")
WERE_RUN = {
    "ray get-auth-token --generate",
    "ray start --head --port=6399 --include-dashboard=true --dashboard-port=8299 "
    "--disable-usage-stats",
    "ray start --head --metrics-export-port=8080",
    "ray stop",
}
GAP = "…"
"""Stands for what differs in a message that is quoted."""


def commands() -> Iterator[Any]:
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("    fpe "):
                yield pytest.param(
                    line.split(" #")[0].split(), id=f"{page.stem}: {line.strip()[:60]}"
                )


def operations(text: str) -> Iterator[tuple[str, bool]]:
    """Commands of `OPERATING` in a page, as lines or within one, and whether each is marked."""
    programs = "|".join(OPERATING)
    for line in text.splitlines():
        if line.startswith("    "):
            command, _, comment = line.partition(" #")
            for part in re.split(r"&&|\|", command):
                if re.match(rf"\s*({programs})\s", part):
                    yield part.strip(), any(mark in comment for mark in MARKS)
        else:
            for found in re.finditer(rf"`((?:{programs}) [^`]+)`([^`|;]*)", line):
                yield found[1], any(mark in found[2] for mark in MARKS)


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


def test_commands_of_clusters_and_schedulers_are_found_in_lines_and_between_words() -> None:
    text = """
    export MODE=token && ray up a.yaml   # (cluster) once
    kubectl get pods
    fpe status out/run
Say `kubectl apply -f b.yaml` *(cluster)*, or `ray down a.yaml`; `ray` alone is none."""
    assert list(operations(text)) == [
        ("ray up a.yaml", True),
        ("kubectl get pods", False),
        ("kubectl apply -f b.yaml", True),
        ("ray down a.yaml", False),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_was_not_run_is_marked(page: pathlib.Path) -> None:
    found = list(operations(page.read_text(encoding="utf-8")))
    assert {command for command, is_marked in found if not is_marked} <= WERE_RUN
    assert not {command for command, is_marked in found if is_marked} & WERE_RUN


@pytest.mark.parametrize("name", ["cluster", "local", "schedule", "troubleshooting", "tuning"])
def test_a_guide_says_which_of_its_commands_were_run(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert re.search(r"\b(was|were)\s+run\b", text)


def test_files_that_are_applied_have_names_and_those_created_are_there() -> None:
    """`kubectl apply` refuses what has a generateName alone."""
    texts = [f.read_text(encoding="utf-8") for f in (*PAGES, ROOT / "README.md", *CLUSTER_FILES)]
    given = {
        (verb, file)
        for text in texts
        for verb, file in re.findall(r"kubectl (apply|create) -f ([\w./-]+\.yaml)", text)
        if not file.startswith("/")
    }
    assert {verb for verb, _ in given} == {"apply", "create"}
    for verb, file in given:
        for manifest in yaml.safe_load_all((ROOT / file).read_text(encoding="utf-8")):
            assert ("name" in manifest["metadata"]) == (verb == "apply"), (verb, file)


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

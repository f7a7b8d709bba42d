"""What README, CONTRIBUTING and docs/ show is true: commands, keys, codes, links, messages."""

from __future__ import annotations

import ast
import pathlib
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer.main
import yaml

from fpe_core import SCORES
from fpe_core.judging.rules import RejectReason
from jobs.cli import app
from jobs.terminal import exits
from pipeline.job.job import Job
from pipeline.ledger.outcome import FailureCode
from pipeline.manifest.columns import EDIT_TYPE, INSTRUCTION, KNOWN_COLUMNS
from pipeline.manifest.edit_inputs import BLEND_WORDS, EDIT_MASK, STRENGTH
from pipeline.manifest.region_columns import REGION_COLUMNS
from pipeline.run.metrics import FAMILIES

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
GUIDES = sorted(DOCS.glob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")),
    *GUIDES,
    *sorted((ROOT / "fpe_core" / "still_life").glob("*/README.md")),
]
"""Every page for people but the CHANGELOG, whose past entries name what was there at the time."""
TROUBLES = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
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
NOT_A_JOB = "# prometheus.yml"
"""First line of a YAML block that is another program's file."""


def text_of(page: pathlib.Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def commands_in(text: str) -> Iterator[list[str]]:
    """Commands of `fpe`: as lines of their own, and in code type within sentences."""
    without_fences = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M)
    for line in without_fences.splitlines():
        if line.startswith("    fpe "):
            yield re.split(r"\s#", line)[0].split()
    sentences = "\n".join(
        line for line in without_fences.splitlines() if not line.startswith("    ")
    )
    for found in re.findall(r"`(fpe\s[^`]+)`", sentences):
        yield found.split()


def commands() -> Iterator[Any]:
    for page in PAGES:
        for words in commands_in(text_of(page)):
            yield pytest.param(words, id=f"{name_of(page)}: {' '.join(words)[:60]}")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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


def job_blocks() -> Iterator[Any]:
    for page in PAGES:
        blocks = re.findall(r"^```ya?ml\n(.*?)^```", text_of(page), re.DOTALL | re.M)
        for number, block in enumerate(blocks):
            if not block.startswith(NOT_A_JOB):
                yield pytest.param(block, id=f"{name_of(page)} {number}")


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


def test_the_index_has_every_page_once() -> None:
    rows = re.findall(r"^\| \[[^\]]+\]\(([\w-]+\.md)\) \|", text_of(INDEX), re.M)
    assert sorted(rows) == sorted(page.name for page in GUIDES if page != INDEX)


def test_the_readme_leads_to_the_index() -> None:
    assert "(docs/README.md)" in text_of(ROOT / "README.md")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_exist_with_these_options(words: list[str]) -> None:
    here: Any = typer.main.get_command(app)
    rest = [word for word in words[1:] if word not in ("--debug", "--help")]
    while hasattr(here, "commands") and rest and rest[0] != GAP:
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


def test_commands_are_found_in_lines_and_between_words() -> None:
    text = """
    fpe run job.yaml edit.steps=20   # any key
Say `fpe bench edits
--scenes 40`, or `fpe plan`; `fpe` alone is none.
```text
    fpe none
```
"""
    assert list(commands_in(text)) == [
        ["fpe", "run", "job.yaml", "edit.steps=20"],
        ["fpe", "bench", "edits", "--scenes", "40"],
        ["fpe", "plan"],
    ]


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


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_what_was_not_run_is_marked(page: pathlib.Path) -> None:
    found = list(operations(text_of(page)))
    assert {command for command, is_marked in found if not is_marked} <= WERE_RUN
    assert not {command for command, is_marked in found if is_marked} & WERE_RUN


@pytest.mark.parametrize("name", ["cluster", "schedule", "start", "troubleshooting", "tuning"])
def test_a_guide_says_which_of_its_commands_were_run(name: str) -> None:
    assert re.search(r"\b(was|were)\s+run\b", text_of(DOCS / f"{name}.md"))


def test_files_that_are_applied_have_names_and_those_created_are_there() -> None:
    """`kubectl apply` refuses what has a generateName alone."""
    texts = [text_of(f) for f in (*GUIDES, ROOT / "README.md", *CLUSTER_FILES)]
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


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_to_files_and_headings(page: pathlib.Path) -> None:
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.M)
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(text_of(file)), target


def test_what_is_read_names_tests_that_exist() -> None:
    """Every row ends with tests, each a link [name](file)."""
    rows = re.findall(r"^\| .* \|$", text_of(DOCS / "what-is-read.md"), re.M)
    rows = [row for row in rows if not row.startswith("| kind |")]
    assert len(rows) > 100
    for row in rows:
        tests = re.findall(
            r"\[(\w+(?:\.py)?)\]\(\.\./(tests/[\w/]+\.py)\)", row.rsplit(" | ", 1)[1]
        )
        assert tests, row
        for name, file in tests:
            text = (ROOT / file).read_text(encoding="utf-8")
            found = re.search(rf"^ *(?:def|class) {name}\b", text, re.M)
            assert found or name == pathlib.Path(file).name, f"{file} has no {name}"


@pytest.mark.parametrize("block", list(job_blocks()))
def test_blocks_of_job_files_are_jobs(block: str) -> None:
    """A block that is a part of a job file is valid in one."""
    Job.model_validate({"manifest": "m", "output": "o", **yaml.safe_load(block)})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_that_is_shown_can_be_read(page: pathlib.Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.DOTALL | re.M):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pipeline."):
                module = ROOT / pathlib.Path(*str(node.module).split(".")).with_suffix(".py")
                defined = {
                    each.name
                    for each in ast.parse(module.read_text(encoding="utf-8")).body
                    if isinstance(each, ast.FunctionDef | ast.ClassDef)
                }
                assert {alias.name for alias in node.names} <= defined


def test_the_manifest_that_is_written_is_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", text_of(DOCS / "manifest.md"), re.DOTALL | re.M)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/manifest.md", "exec"), {})
    written = pq.read_table(tmp_path / "manifest.parquet")
    assert written.num_rows > 0
    assert set(written.column_names) <= set(KNOWN_COLUMNS)


def test_columns_of_a_manifest_have_their_lines() -> None:
    text = text_of(DOCS / "manifest.md")
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.M)
    shown = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert shown == {
        *KNOWN_COLUMNS,
        *(INSTRUCTION, EDIT_TYPE, EDIT_MASK, BLEND_WORDS, STRENGTH, *REGION_COLUMNS),
    }


def test_scores_of_a_judge_have_their_lines() -> None:
    cells = re.findall(r"^\| `(\w+)` \|", text_of(DOCS / "judging.md"), re.M)
    assert set(cells) - {reason.value for reason in RejectReason} == SCORES


def test_the_algorithm_that_is_shown_is_the_one_that_runs() -> None:
    """But for comments: the loop over the steps in fpe_core/sampling.py."""
    (block,) = re.findall(
        r"^```python\n(.*?)^```", text_of(ROOT / "ARCHITECTURE.md"), re.DOTALL | re.M
    )
    source = (ROOT / "fpe_core" / "sampling.py").read_text(encoding="utf-8")
    loops = [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.For)]
    assert ast.unparse(ast.parse(block)) in loops


def test_exit_codes_are_those_of_the_program() -> None:
    (table,) = re.findall(r"^## Exit codes\n(.*)", text_of(DOCS / "stores.md"), re.DOTALL | re.M)
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


def test_every_section_of_a_job_file_has_its_line() -> None:
    shown = re.findall(r"^\| (`[^|]+) \|", text_of(DOCS / "job-file.md"), re.M)
    names = {name for cell in shown for name in re.findall(r"`(\w+)`", cell)}
    assert set(Job.model_fields) - names == set()


def test_every_metric_has_its_line() -> None:
    text = text_of(DOCS / "observability.md")
    rows = re.findall(r"^\| (`fpe_[^|]+)\|", text, re.M)
    shown = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert shown == {family.name for family in FAMILIES}


def test_every_failure_code_has_its_line() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|", TROUBLES, re.M)
    assert set(rows) >= {code.value for code in FailureCode}


def test_messages_that_are_quoted_are_messages() -> None:
    texts = literals()
    first_column = re.findall(r"^\| ([^|]*)", TROUBLES, re.M)
    codes = [text for cell in first_column for text in re.findall(r"`([^`]*)`", cell)]
    quoted = [text for text in codes if " " in text]
    assert len(quoted) > 15
    unknown = [
        text
        for text in quoted
        if not any(re.search(".*".join(map(re.escape, text.split(GAP))), each) for each in texts)
    ]
    assert unknown == []


def test_the_changelog_can_be_skimmed() -> None:
    """Headings as in Keep a Changelog, entries of at most four lines, this version at the top."""
    text = text_of(ROOT / "CHANGELOG.md")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", text, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert versions[0] == project["version"]
    assert len(versions) == len(re.findall(r"^## ", text, re.M))
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= {"Added", "Changed", "Removed", "Fixed"}
    entries = re.findall(r"^- .*(?:\n  .*)*", text, re.M)
    assert [entry for entry in entries if len(entry.splitlines()) > 4] == []

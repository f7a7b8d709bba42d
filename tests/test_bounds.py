"""constraints-lowest.txt has the lower bounds of pyproject.toml, with which `make lowest` runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
OLDEST_TORCH_THAT_RUNS = "2.13.0"
"""In `make lowest`: older builds for a CPU alone need an index of their own."""


def bounds() -> dict[str, str]:
    """The lower bound of every dependency of the program and its extras, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][e] for e in ("s3", "gcs", "azure", "bench")]
    wanted = [*project["dependencies"], *(line for extra in extras for line in extra)]
    found = {}
    for line in wanted:
        parts = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)(?:,<[\d.]+)?", line)
        assert parts, f"{line}: a dependency has a lower bound"
        found[parts[1]] = parts[2]
    return found


def lowest() -> dict[str, str]:
    text = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_the_versions_of_make_lowest_are_the_lower_bounds() -> None:
    assert lowest() == bounds() | {"torch": OLDEST_TORCH_THAT_RUNS}


def test_what_is_developed_with_is_not_below_a_lower_bound() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {
        name.lower(): version for name, version in (line.split("==") for line in text.split())
    }
    for name, bound in bounds().items():
        if name in pinned:  # gcsfs and adlfs are not
            assert _numbers(pinned[name]) >= _numbers(bound), name


def test_continuous_integration_runs_it() -> None:
    assert "lowest" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").split()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-c constraints-lowest.txt '.[s3]'" in makefile
    assert "fpe verify demo --recompute" in makefile


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]

"""House rules: imports run downward only, the core knows no cluster, the surface is a list."""

from __future__ import annotations

import ast
import pathlib
import re
import tomllib
from collections.abc import Iterator

import pytest

import fpe_core
from jobs.job_file.load import BUILTIN_FOLDER

ROOT = pathlib.Path(__file__).parent.parent

FLOORS = ("fpe_core", "pipeline", "jobs")
"""From the ground up; a floor may import itself and those below."""

KEPT_OUT_OF_THE_CORE = {"ray", "pyarrow", "fsspec", "s3fs", "gcsfs", "adlfs", "pandas", "pydantic"}
KEPT_OUT_OF_THE_PIPELINE = {"typer", "rich"}

PUBLIC_SURFACE = [
    "ALGORITHM_VERSION",
    "Checkpoint",
    "CheckpointError",
    "ClipScorer",
    "Edit",
    "EditParameters",
    "EditResult",
    "EditScores",
    "Editor",
    "FPEError",
    "Fit",
    "FittedImage",
    "ImageDecodeError",
    "ImageTooLargeError",
    "Inversion",
    "LayersByRange",
    "LayersByTokens",
    "LpipsModel",
    "ParameterError",
    "PromptError",
    "RowsOutOfMemoryError",
    "SCORES",
    "StructureModel",
    "SyntheticSources",
    "changed_share",
    "checkpoint_defaults",
    "checkpoint_fingerprint",
    "clipped_shift",
    "decode_image",
    "directional_similarity",
    "fit_image",
    "image_similarity",
    "load_checkpoint",
    "load_lpips",
    "load_scorer",
    "load_structure_model",
    "psnr_db",
    "saturation_shift",
    "score_edits",
    "sharpness_ratio",
    "ssim",
    "structure_distance",
    "text_score",
]


def modules_of(floor: str) -> list[pathlib.Path]:
    return sorted((ROOT / floor).rglob("*.py"))


def imported_packages(source: str) -> Iterator[str]:
    """The top-level names of everything a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.partition(".")[0]


def breaches(source: str, floor: str) -> set[str]:
    """What a module of a floor imports and must not."""
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    kept_out = {
        "fpe_core": KEPT_OUT_OF_THE_CORE | KEPT_OUT_OF_THE_PIPELINE,
        "pipeline": KEPT_OUT_OF_THE_PIPELINE,
        "jobs": set[str](),
    }[floor]
    return set(imported_packages(source)) & (above | kept_out | {"tests"})


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_run_downward_only(floor: str) -> None:
    files = modules_of(floor)
    assert files
    found = {
        str(f.relative_to(ROOT)): breaches(f.read_text(encoding="utf-8"), floor) for f in files
    }
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("floor", "source", "breach"),
    [
        ("fpe_core", "import pyarrow.parquet as pq", {"pyarrow"}),
        ("fpe_core", "def f():\n    from pipeline import plan", {"pipeline"}),
        ("pipeline", "from jobs.config import load_job", {"jobs"}),
        ("pipeline", "import fpe_core, ray", set()),
        ("jobs", "import pipeline.run", set()),
    ],
)
def test_the_rule_sees_a_breach(floor: str, source: str, breach: set[str]) -> None:
    assert breaches(source, floor) == breach


def test_the_public_surface() -> None:
    """Change this list on purpose, and the changelog with it."""
    assert sorted(fpe_core.__all__) == sorted(PUBLIC_SURFACE)
    assert all(hasattr(fpe_core, name) for name in PUBLIC_SURFACE)


def test_every_package_is_in_the_distribution() -> None:
    """A folder without __init__.py would be left out of a wheel without a word."""
    for floor in FLOORS:
        for folder in {path.parent for path in modules_of(floor)}:
            assert (folder / "__init__.py").exists(), folder
        assert (ROOT / floor / "py.typed").exists()


def test_ready_made_jobs_lie_in_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    data = project["tool"]["setuptools"]["package-data"]
    assert ROOT / "jobs" == BUILTIN_FOLDER
    assert "*.yaml" in data["jobs"]
    assert {"still_life/checkpoint/**", "still_life/scorer/**"} <= set(data["fpe_core"])


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[><=]", line)[0].lower() for line in wanted}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = [line.split("==") for line in lines]
    assert all(len(pin) == 2 for pin in pins), "name==version only: no URLs, no local paths"
    assert names <= {name.lower() for name, _ in pins}
    assert not [n for n, _ in pins if re.match(r"nvidia|cuda|triton", n)], "pins of one platform"
    assert not [v for _, v in pins if "+" in v], "a local build is no version others can install"

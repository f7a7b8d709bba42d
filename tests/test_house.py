"""House rules: imports run one way, between floors and wings; the public surface is a list."""

from __future__ import annotations

import ast
import graphlib
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping

import pytest

import fpe_core
from jobs.job_file.ready_made import BUILTIN_FOLDER

ROOT = pathlib.Path(__file__).parent.parent

FLOORS = ("fpe_core", "pipeline", "jobs")
"""From the ground up; a floor may import itself and those below."""

KEPT_OUT_OF_THE_CORE = {"ray", "pyarrow", "fsspec", "s3fs", "gcsfs", "adlfs", "pandas", "pydantic"}
KEPT_OUT_OF_THE_PIPELINE = {"typer", "rich"}

WINGS: dict[str, dict[str, set[str]]] = {
    "pipeline": {
        "storage": set(),
        "supervision": set(),
        "manifest": {"storage"},
        "ledger": {"storage"},
        "job": {"manifest", "storage"},
        "read": {"manifest", "ledger", "storage", "supervision"},
        "judge": {"read", "manifest", "ledger", "storage"},
        "write": {"read", "manifest", "ledger", "storage"},
        "edit": {"judge", "write", "read", "manifest", "ledger", "supervision", "storage"},
        "plan": {"job", "judge", "manifest", "ledger", "storage"},
        "cluster": {
            *("edit", "read", "plan", "job", "manifest", "ledger", "supervision", "storage"),
        },
        "run": {
            *("cluster", "edit", "judge", "write", "read", "plan", "job", "manifest", "ledger"),
            *("supervision", "storage"),
        },
        "cost": {
            *("run", "cluster", "edit", "judge", "write", "read", "plan", "job", "manifest"),
            "ledger",
        },
        "verify": {"run", "edit", "write", "read", "plan", "job", "manifest", "ledger", "storage"},
        "report": {"run", "plan", "job", "ledger", "storage"},
    },
    "fpe_core": {
        "image": set(),
        "editors": set(),
        "unet": set(),
        "checkpoint": {"unet", "editors"},
        "scores": {"checkpoint", "image"},
        "judging": {"scores"},
        "still_life": {"editors", "judging", "scores", "checkpoint", "unet", "image"},
    },
    "jobs": {
        "job_file": set(),
        "terminal": set(),
        "report": {"terminal"},
        "bench": {"job_file", "terminal"},
        "manifest_from": set(),
        "commands": {"bench", "report", "job_file", "terminal", "manifest_from"},
    },
}
"""The folders of each floor, and the folders beside it that each may import.

Any wing may import the files at the root of its floor, and the floors below.
"""

WINGS_OF_THE_ALGORITHM = {
    "sampling": {"unet", "editors"},
    "inversion": {"unet", "image"},
    "editor": {"unet", "checkpoint", "image", "editors"},
    "edit_regions": {"unet", "checkpoint", "editors"},
    "edit_rows": {"unet"},
    "edit_words": {"unet", "editors"},
    "blending": {"unet", "editors"},
    "injection": set[str](),
    "layer_rules": set[str](),
    "row_formulas": {"editors"},
    "schedule": set[str](),
    "parameters": {"editors"},
}
"""The files at the root of fpe_core are the algorithm: what of the wings each may import."""

PUBLIC_SURFACE = [
    "ALGORITHM_VERSION",
    "AttentionRegions",
    "Blend",
    "BlendedLatent",
    "Checkpoint",
    "CheckpointError",
    "ClipScorer",
    "CrossGuidance",
    "DdimEditing",
    "DiffEdit",
    "DifferenceMask",
    "Edit",
    "EditInputs",
    "EditMethod",
    "EditParameters",
    "EditResult",
    "EditRule",
    "EditScores",
    "Editor",
    "Embedding",
    "FPEError",
    "Fit",
    "FittedImage",
    "FreePromptEditing",
    "ImageDecodeError",
    "ImageTooLargeError",
    "Injection",
    "Inside",
    "InstructPix2Pix",
    "Inversion",
    "LayersByLevel",
    "LayersByPart",
    "LayersByRange",
    "LayersByTokens",
    "Lora",
    "LpipsModel",
    "MasaCtrl",
    "NotApplicableError",
    "ParameterError",
    "Pix2PixZero",
    "PlugAndPlay",
    "PromptError",
    "PromptToPrompt",
    "Proximal",
    "RegionPrompts",
    "ResidualInjection",
    "RowCounts",
    "RowsOutOfMemoryError",
    "SCORES",
    "SdEdit",
    "ShapeGuided",
    "Start",
    "StructureModel",
    "SyntheticSources",
    "WordMask",
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
    "method_from_dict",
    "method_named",
    "method_names",
    "psnr_db",
    "row_counts",
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


def module_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(source: str) -> Iterator[str]:
    """The full names of all modules that a module may import, lazily too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wing_of(module: str) -> str | None:
    """The folder of its floor that a module lies in; None at the root of the floor."""
    floor, _, rest = module.partition(".")
    wing = rest.partition(".")[0]
    return wing if wing in WINGS.get(floor, ()) else None


def wrong_ways(module: str, source: str) -> set[str]:
    """What a module imports of its own floor and must not."""
    floor, wing = module.partition(".")[0], wing_of(module)
    if wing is not None:
        allowed = WINGS[floor][wing] | {wing}
    elif floor == "fpe_core":
        allowed = WINGS_OF_THE_ALGORITHM.get(module.rpartition(".")[2], set(WINGS[floor]))
    else:
        return set()
    wings = {wing_of(name) for name in imported_modules(source) if name.partition(".")[0] == floor}
    return {name for name in wings if name is not None} - allowed


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, over whatever way round."""
    sorter = graphlib.TopologicalSorter(imports)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        return [error.args[1]]
    return []


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


def test_every_folder_of_a_floor_is_a_wing() -> None:
    for floor, wings in WINGS.items():
        folders = {
            path.relative_to(ROOT / floor).parts[0]
            for path in modules_of(floor)
            if path.parent != ROOT / floor
        }
        assert folders == set(wings)


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_between_wings_run_one_way(floor: str) -> None:
    found = {
        module_of(path): wrong_ways(module_of(path), path.read_text(encoding="utf-8"))
        for path in modules_of(floor)
    }
    assert {name: wings for name, wings in found.items() if wings} == {}


def test_no_module_imports_itself_by_a_detour() -> None:
    """Imports inside functions count: a circle is one, whenever it is walked."""
    known = {module_of(path): path for floor in FLOORS for path in modules_of(floor)}
    imports = {
        module: set(imported_modules(path.read_text(encoding="utf-8"))) & set(known)
        for module, path in known.items()
        if path.name != "__init__.py"
    }
    assert circles(imports) == []


@pytest.mark.parametrize(
    ("module", "source", "wings"),
    [
        ("pipeline.ledger.lease", "from pipeline.run.driver import run_job", {"run"}),
        ("pipeline.ledger.lease", "def f():\n    from pipeline import run", {"run"}),
        ("pipeline.ledger.lease", "from pipeline.storage.folder import Folder", set()),
        ("fpe_core.schedule", "from fpe_core.unet.rows import UNetRows", {"unet"}),
        ("fpe_core.unet.forward", "import fpe_core.device", set()),
        ("jobs.terminal.tables", "import jobs.report.page", {"report"}),
    ],
)
def test_the_rule_sees_a_wrong_way(module: str, source: str, wings: set[str]) -> None:
    assert wrong_ways(module, source) == wings


def test_the_rule_sees_a_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circles({"a": {"b", "c"}, "b": {"c"}})


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


@pytest.mark.parametrize(
    ("modules", "kept_out"),
    [
        ("jobs.cli", {"torch", "ray", "pyarrow", "pydantic"}),
        ("fpe_core", {"torch", "numpy", "PIL"}),
        # What a run imports that finds nothing to do.
        (
            "pipeline.job.file, jobs.terminal.progress, jobs.terminal.tables, pipeline.run.driver",
            {"torch", "ray", "transformers", "diffusers", "aiohttp"},
        ),
        # What the driver of a run imports, and a worker that reads.
        ("pipeline.cluster.graph", {"torch", "transformers", "diffusers"}),
    ],
)
def test_what_takes_seconds_to_import_is_imported_where_it_is_used(
    modules: str, kept_out: set[str]
) -> None:
    code = f"import sys, {modules}; print(*(m for m in {sorted(kept_out)} if m in sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.split() == []


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
    assert {
        "still_life/checkpoint/**",
        "still_life/instruct/**",
        "still_life/scorer/**",
    } <= set(data["fpe_core"])


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

"""Imports this program's packages by their files, whatever else on the path has their names.

A `pipeline.py` in the folder that `python -m jobs` is started in, or on PYTHONPATH, would be found
first. Workers of Ray do the same (`pipeline.cluster.own_code`).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent.parent
_PACKAGES = {"pipeline": "run_job", "fpe_core": "load_checkpoint"}
"""By name, one of the names that each package lists in `__all__`."""


def import_own_packages() -> None:
    """Imports `pipeline` and `fpe_core` of the folder that `jobs` is in, if they are there.

    (On a cluster that got the code with `fpe submit --with-code` each has a folder of its own.)

    Raises SystemExit, with exit code 2, if another distribution has overwritten one of them.
    """
    for name, public in _PACKAGES.items():
        folder = _FOLDER / name
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        if public not in getattr(module, "__all__", ()):
            _refuse(folder / "__init__.py")


def _refuse(file: Path) -> None:
    from importlib.metadata import packages_distributions  # loads much: only when needed

    owners = set(packages_distributions().get(file.parent.name, ()))
    others = " or ".join(sorted(owners - {"free-prompt-editing-batch"})) or "something else"
    sys.stderr.write(
        f"error: {file} is in the way: {others} has overwritten this program's file of that name. "
        "Install this program in a virtual environment of its own.\n"
    )
    raise SystemExit(2)

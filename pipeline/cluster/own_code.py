"""Makes Ray's workers import this program and its libraries, and no other code of the same names.

Ray puts the folder that a driver was started in, and that of its script, first on the path of all
workers. A `pipeline.py` there would be imported in place of our package, and a `datasets.py` or
`random.py` in place of a library's. If there is one, workers are told to import our packages by
their files, and to look into those two folders last.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import fpe_core
import pipeline

_FOLDERS = {
    package.__name__: Path(str(package.__file__)).resolve().parent
    for package in (pipeline, fpe_core)
}
"""Where the packages are that workers import, by name. On a cluster they may have no folder in
common."""
_MARKS = {"pipeline": "cluster/own_code.py", "fpe_core": "sampling.py"}
"""A file of each package by which it is known to be ours."""


def runtime_env() -> dict[str, Any] | None:
    """What Ray has to be told so that workers import this program; None if nothing is in the way.

    A runtime environment costs every worker a second, so there is one only where it is needed.
    """
    first = _folders_that_ray_puts_first()
    if in_the_way() is None and not any(map(_hides_a_library, first)):
        return None
    folders = {name: str(folder) for name, folder in _FOLDERS.items()}
    return {"worker_process_setup_hook": _importer(folders, _MARKS, first)}


def in_the_way() -> Path | None:
    """What workers would import in place of our packages, if they are left to themselves."""
    path = [*_folders_that_ray_puts_first(), *sys.path]
    for name, folder in _FOLDERS.items():
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            continue  # an editable install of ours is found by other means
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or [name])))
        if not found.resolve().is_relative_to(folder):
            return found
    return None


def _folders_that_ray_puts_first() -> list[str]:
    """As ray 2.60 does it (_private/worker.py, connect)."""
    script = os.path.dirname(os.path.realpath(sys.argv[0]))  # noqa: PTH120
    return [os.getcwd(), *([script] if script in sys.path else [])]  # noqa: PTH109


def _hides_a_library(folder: str) -> bool:
    """Whether a module in the folder has the name of one that is found elsewhere, too."""
    others = [each for each in sys.path if os.path.abspath(each or ".") != folder]  # noqa: PTH100
    with os.scandir(folder) as entries:  # it may hold a million images
        for each in entries:
            path = Path(each.path)
            is_module = each.is_dir() and (path / "__init__.py").is_file()
            if (is_module or path.suffix == ".py") and (
                path.stem in sys.stdlib_module_names or PathFinder.find_spec(path.stem, others)
            ):
                return True
    return False


def _importer(
    folders: Mapping[str, str], marks: Mapping[str, str], last: Sequence[str]
) -> Callable[[], None]:
    """A function that imports the packages from their folders, and puts `last` at the end.

    It is nested and imports what it needs itself, because it is sent by value: a worker calls it
    before it can import anything of ours. If a folder is not there, which may be so on another
    machine, the first package on the worker's path that is ours takes its place.
    """

    def import_own_packages() -> None:
        import importlib.util
        import sys
        from importlib.machinery import PathFinder
        from pathlib import Path

        class Later(PathFinder):
            """Finds modules anywhere but in the folders that come last; Ray adds these later."""

            @classmethod
            def find_spec(cls, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
                if path is not None:
                    return None
                earlier = [each for each in sys.path if each not in last]
                return PathFinder.find_spec(fullname, earlier, target)

        for name, folder in folders.items():
            places = [Path(folder), *(Path(each) / name for each in sys.path)]
            ours = next((each for each in places if (each / marks[name]).is_file()), None)
            if ours is None:
                continue
            spec = importlib.util.spec_from_file_location(
                name, ours / "__init__.py", submodule_search_locations=[str(ours)]
            )
            if spec is None or spec.loader is None:
                continue
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        # After the finders of built-in and frozen modules, before the one of sys.path.
        sys.meta_path.insert(sys.meta_path.index(PathFinder), Later)

    return import_own_packages

"""The networks' classes without the rest of their libraries: an editing worker starts sooner.

`from diffusers import UNet2DConditionModel` runs the `__init__` of every package on the way, which
import all of diffusers' networks; and diffusers marks some of its functions for torch.compile, for
which torch loads its compiler. Neither is needed to edit: half of what the imports take.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

_MODULES = (
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.schedulers.scheduling_ddim",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
_PASSED_BY = (
    "diffusers.hooks",
    "diffusers.models.transformers",
    "diffusers.models.unets",
    "diffusers.models.autoencoders",
)
"""Packages whose `__init__` imports what nobody asked for; their modules name each other fully."""
_COMPILER = "torch._dynamo"
_MARKS = ("disable", "allow_in_graph", "assume_constant_result")
"""What the libraries mark functions with. With the first other name the compiler is loaded."""

_log = logging.getLogger(__name__)


@contextmanager
def lean_imports() -> Iterator[None]:
    """Imports the classes that `load_checkpoint` needs, and as little else; load it in the context.

    For a process that compiles nothing: functions that the libraries mark for torch.compile stay
    unmarked. Whoever imports the libraries the usual way later gets the same classes. Where their
    layout is not the one known here, loading imports all of them, which only takes longer.
    """
    with _without_compiler():
        try:
            with _without_inits(_PASSED_BY):
                for name in _MODULES:
                    importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - of another version
            _log.debug("the networks are imported with all of their libraries: %s", error)
        yield


@contextmanager
def _without_compiler() -> Iterator[None]:
    """torch's compiler is not loaded to mark functions for it: what marks them does nothing."""
    if _COMPILER in sys.modules:
        yield
        return
    spec = _spec(_COMPILER)
    marks = _Marks(_COMPILER)
    marks.__spec__, marks.__path__ = spec, list(spec.submodule_search_locations or ())
    sys.modules[_COMPILER] = marks
    try:
        yield
    finally:
        marks.leave()


class _Marks(ModuleType):
    """Stands where the compiler would, until somebody wants more of it than marks."""

    def __getattr__(self, name: str) -> Any:
        if name in _MARKS:
            return _unmarked
        if name.startswith("__"):
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(_COMPILER), name)

    def leave(self) -> None:
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]


def _unmarked(fn: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Callable[..., Any]:
    """As each of `_MARKS`: a decorator, or what makes one."""
    return _unmarked if fn is None else fn


@contextmanager
def _without_inits(packages: tuple[str, ...]) -> Iterator[None]:
    """Modules of these packages can be imported, and their `__init__` is not run for it."""
    put: list[str] = []
    try:
        for name in packages:
            if name not in sys.modules:
                parent, _, child = name.rpartition(".")
                sys.modules[name] = _bare(name)
                setattr(sys.modules[parent], child, sys.modules[name])
                put.append(name)
        yield
    finally:
        for name in put:  # the next import of the package runs its `__init__`
            bare = sys.modules.pop(name)
            parent, _, child = name.rpartition(".")
            if vars(sys.modules[parent]).get(child) is bare:
                delattr(sys.modules[parent], child)


def _bare(name: str) -> ModuleType:
    """The module of a package, its `__init__` not run; its modules can be imported."""
    return module_from_spec(_spec(name))


def _spec(name: str) -> ModuleSpec:
    parent = importlib.import_module(name.rpartition(".")[0])
    spec = PathFinder.find_spec(name, parent.__path__)
    if spec is None:
        raise ModuleNotFoundError(name)
    return spec

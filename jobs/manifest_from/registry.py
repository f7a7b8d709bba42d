"""The sources that manifests are made from, by name: every module of `sets` has one."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Mapping
from importlib import import_module

from jobs.manifest_from import sets
from jobs.manifest_from.source import Options, Source
from pipeline.errors import JobError

_OPTIONS = {
    "mapping": "--mapping",
    "images": "--images",
    "split": "--split",
    "seed": "--seed",
    "frame": "--no-frame",
}
"""What the fields of `Options` are called on the command line."""


@functools.cache
def sources() -> Mapping[str, Source]:
    """All sources by name, sorted."""
    found = [
        import_module(f"{sets.__name__}.{module.name}").SOURCE
        for module in pkgutil.iter_modules(sets.__path__)
    ]
    return {each.name: each for each in sorted(found, key=lambda each: each.name)}


def source_named(name: str, options: Options) -> Source:
    """The source of a name. Raises JobError for an unknown one, and for options it does not use."""
    if name not in sources():
        raise JobError(f"unknown set {name!r}; there are {', '.join(sources())}")
    source = sources()[name]
    for each, option in _OPTIONS.items():
        if getattr(options, each) != getattr(Options(), each) and each not in source.takes:
            raise JobError(f"{option} has no meaning for {name}")
    return source

"""What to do about a key of a job file of version 0.1 that was renamed or removed since.

In a job file and in overrides such a key is an error that says what to do. The config.yaml of a
run folder is translated instead (`pipeline.job.renamed_keys`).
"""

from __future__ import annotations

from collections.abc import Callable

from jobs.job_file.yaml_text import Path, dotted
from pipeline.job.renamed_keys import REMOVED, RENAMED, SINCE


def advice(path: Path, has_key: Callable[[Path], bool]) -> str | None:
    """What to do about an unknown key, such as "was renamed to judge.retries in 0.2.0".

    None if it is not a key of 0.1. `has_key` says which keys there are now: a file of rules has
    fewer than a job file, and a new name is only given where it may be written.
    """
    name = dotted(path)
    new = RENAMED.get(name)
    if new is not None and has_key(tuple(new.split("."))):
        return f"was renamed to {new} in {SINCE}"
    if name in REMOVED or _by_its_old_name(name) in REMOVED:
        return f"was removed in {SINCE}; leave it out"
    return None


def _by_its_old_name(name: str) -> str:
    """A key of a section that was renamed, as 0.1 named it; any other as it is."""
    for old, new in RENAMED.items():
        if name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    return name

"""Keys of job files of version 0.1 that have another name since 0.2.0, or were removed.

The config.yaml of a run folder that 0.1 wrote is translated, so that all commands go on working on
it. In job files that people write such a key is an error that says what to do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.job.yaml_text import Path, dotted

SINCE = "0.2.0"
RENAMED = {
    "judge.second_tries": "judge.retries",
    "judge.reproduction": "judge.reconstruction",
}
"""Old name to new name, both dotted and in the same section. A section keeps its inner keys."""

REMOVED = ("model.compile", "resources.measure", "judge.reproduction.inversion_psnr_db_at_least")
"""By their old names."""

REMOVED_LIMIT = "judge.reproduction.inversion_psnr_db_at_least"
"""The removed key that decided which edits are accepted; the others only decided how fast."""


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


def in_todays_keys(job: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a stored job with today's names of its keys, and without removed ones.

    A removed limit that was set stays, so that validation reports it: the run depended on it.
    """
    result: dict[str, Any] = copy.deepcopy(dict(job))
    for name in REMOVED:
        section, key = _section_and_key(result, name)
        if section is not None and (name != REMOVED_LIMIT or section.get(key) is None):
            section.pop(key, None)
    for old, new in RENAMED.items():
        section, key = _section_and_key(result, old)
        if section is not None and key in section:
            section.setdefault(new.rpartition(".")[2], section.pop(key))
    return result


def _section_and_key(data: dict[str, Any], name: str) -> tuple[dict[str, Any] | None, str]:
    """The mapping that may hold a dotted key; None if there is no such mapping."""
    *sections, key = name.split(".")
    holder: Any = data
    for section in sections:
        holder = holder.get(section) if isinstance(holder, dict) else None
    return (holder if isinstance(holder, dict) else None), key


def _by_its_old_name(name: str) -> str:
    """A key of a section that was renamed, as 0.1 named it; any other as it is."""
    for old, new in RENAMED.items():
        if name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    return name

"""Keys of job files of version 0.1 that were renamed or removed in 0.2.0.

The config.yaml of a run folder that 0.1 wrote is translated, so that all commands still work on it.
In any other job file such a key is an error, whose message has the new name.
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
"""New names by old names, both dotted and in the same section. Keys inside a renamed section stay
the same."""

REMOVED = ("model.compile", "resources.measure", "judge.reproduction.inversion_psnr_db_at_least")
"""By their old names."""

REMOVED_LIMIT = "judge.reproduction.inversion_psnr_db_at_least"
"""The removed key that decided which edits are accepted; the others only decided how fast."""


def advice(path: Path, has_key: Callable[[Path], bool]) -> str | None:
    """The message about a key of 0.1, such as "was renamed to judge.retries in 0.2.0"; None for any
    other key.

    `has_key` tells whether a key is allowed. A file of rules allows fewer keys than a job file, and
    a new name is only suggested if it is allowed.
    """
    name = dotted(path)
    new = RENAMED.get(name)
    if new is not None and has_key(tuple(new.split("."))):
        return f"was renamed to {new} in {SINCE}"
    if name in REMOVED or _by_its_old_name(name) in REMOVED:
        return f"was removed in {SINCE}; leave it out"
    return None


def in_todays_keys(job: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a stored job with the present names of its keys, and without removed keys.

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
    """The 0.1 name of a key in a renamed section; other keys unchanged."""
    for old, new in RENAMED.items():
        if name.startswith(f"{new}."):
            return old + name.removeprefix(new)
    return name

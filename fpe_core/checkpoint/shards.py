"""Weights in several files: whether all of them are there. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from fpe_core.errors import CheckpointError

_NUMBERED = re.compile(r"-(\d+)-of-(\d+)(\.[\w.]+)?$")


def check_shards(folder: Path, paths: Sequence[Path]) -> None:
    """Refuses weights of which a file is missing, by the index beside them and by their numbers.

    Args:
        folder: of one component.
        paths: the weights that are read.

    Raises:
        CheckpointError: with the files that are missing.
    """
    numbered = [(path, _NUMBERED.search(path.stem)) for path in paths]
    if not any(match for _, match in numbered):
        return
    held = {path.name for path in paths}
    missing = {name for index in _indexes(folder, paths) for name in _named(index)} - held
    for path, match in numbered:
        if match is not None:
            start = path.name[: path.name.index(match[0])]
            end = f"{match[3] or ''}{path.suffix}"
            width = len(match[1])
            names = (
                f"{start}-{number:0{width}}-of-{match[2]}{end}"
                for number in range(1, int(match[2]) + 1)
            )
            missing |= set(names) - held
    if missing:
        raise CheckpointError(
            f"{folder} lacks weights that are in several files: {', '.join(sorted(missing))} "
            f"{'is' if len(missing) == 1 else 'are'} missing. The folder was not copied whole"
        )


def _indexes(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """The indexes of the variant that is read."""
    is_half = any(".fp16" in path.name for path in paths)
    return [
        path
        for path in sorted(folder.glob(f"*{paths[0].suffix}.index*.json"))
        if (".fp16" in path.name) == is_half
    ]


def _named(index: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} cannot be read: {type(error).__name__}: {error}. It says which file holds "
            "which weight"
        ) from error

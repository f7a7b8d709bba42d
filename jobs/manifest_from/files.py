"""Files of a benchmark's folder: lists of entries, and pictures whatever their letter case."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from PIL import Image

from jobs.manifest_from.source import Picture, Row
from pipeline.errors import ManifestError


def entries_file(source: Path, given: Path | None, names: Sequence[str], what: str) -> Path:
    """The file that lists a set's entries.

    Args:
        source: the set's folder, or that file itself.
        given: the file that was named (`--mapping`), from here or from the folder.
        names: where it lies in the folder otherwise; the first that is there.
        what: the set, for the message.

    Raises:
        ManifestError: there is none; says what was looked for.
    """
    if given is not None:
        for file in (given, source / given):
            if file.is_file():
                return file
        raise ManifestError(f"{given} is no file, neither here nor in {source}")
    if source.is_file():
        return source
    for name in names:
        if (source / name).is_file():
            return source / name
    raise ManifestError(
        f"{source} is not {what}: it has no {' and no '.join(names)}. Name the folder that has it, "
        "or the file itself"
    )


def read_json(file: Path) -> Any:
    """Raises ManifestError for a file that is no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{file} cannot be read as JSON: {error}") from error


def read_yaml(file: Path) -> Any:
    """Raises ManifestError for a file that is no YAML."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ManifestError(f"{file} cannot be read as YAML: {error}") from error


def list_of_objects(value: Any, file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Entries of a file that is a list of objects, some of which have one of the keys.

    Raises ManifestError for anything else.
    """
    is_list = isinstance(value, list) and all(isinstance(each, dict) for each in value)
    if not is_list or not any(key in each for each in value for key in keys):
        raise ManifestError(
            f"{file} is not a list of entries with {' or '.join(keys)}; it is {_shape(value)}"
        )
    entries: list[dict[str, Any]] = value
    return entries


def _shape(value: Any) -> str:
    if isinstance(value, list):
        keys = sorted({str(key) for each in value[:100] if isinstance(each, dict) for key in each})
        return f"a list of {len(value)}" + (f" with {', '.join(keys)}" if keys else "")
    if isinstance(value, dict):
        return f"an object with {', '.join(list(map(str, value))[:8]) or 'nothing'}"
    return f"a {type(value).__name__}"


def text_of(entry: dict[str, Any], *names: str) -> str | None:
    """The first of the values that is a text with words in it, without blanks around it."""
    for name in names:
        value = entry.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def size_of(row: Row) -> tuple[int, int] | None:
    """(width_px, height_px) of a row's picture; None if it is not there or cannot be read, which is
    then among the row's problems."""
    picture = row.image
    if picture is None or (picture.data is None and not Path(picture.file or "").is_file()):
        return None
    try:
        with Image.open(picture.file or io.BytesIO(picture.data or b"")) as opened:
            return opened.size
    except Exception as error:  # noqa: BLE001 - Pillow raises from every plugin what it likes
        row.problems.append(f"the picture cannot be read: {error}")
        return None


class Pictures:
    """Finds the pictures of a set below some folders, by the paths that its entries have.

    A path that is not there is looked for without regard to letter case, and without its first
    folders (an entry may name the root too, or another one). Nothing is looked for elsewhere.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = list(roots)
        self._names = functools.cache(_names_in)

    def put(self, row: Row, path: Any, what: str) -> None:
        """Sets a row's image. A path that leads nowhere is a problem of the row."""
        if not isinstance(path, str) or not path.strip():
            row.problems.append(f"the entry has no {what}")
            return
        row.image = self.get(row, path)

    def get(self, row: Row, path: str) -> Picture | None:
        """The picture of a path, or where it ought to be: then the row has a problem.

        None for a path that leads out of its folder.
        """
        parts = [part for part in PurePosixPath(path.strip()).parts if part not in ("/", ".")]
        if ".." in parts:
            row.problems.append(f"the path {path} leads out of its folder")
            return None
        for first in range(len(parts)):
            for root in self._roots:
                found = self._below(root, parts[first:])
                if len(found) > 1:
                    row.problems.append(f"{path} may be {' or '.join(map(str, sorted(found)))}")
                    return Picture(self._roots[0].joinpath(*parts))
                if found:
                    return Picture(found[0])
        roots = " and ".join(map(str, self._roots))
        row.problems.append(f"there is no picture {path} in {roots}")
        return Picture(self._roots[0].joinpath(*parts))

    def _below(self, root: Path, parts: Sequence[str]) -> list[Path]:
        """The file of a path; if it is not there, those that differ in letter case alone."""
        if (exact := root.joinpath(*parts)).is_file():
            return [exact]
        places = [root]
        for part in parts:
            names = [(at, self._names(at).get(part.casefold(), ())) for at in places]
            places = [at / name for at, found in names for name in found]
        return [place for place in places if place.is_file()]


def _names_in(folder: Path) -> dict[str, list[str]]:
    """The names in a folder by their form without letter case; {} for what is no folder."""
    names: dict[str, list[str]] = {}
    if folder.is_dir():
        for each in folder.iterdir():
            names.setdefault(each.name.casefold(), []).append(each.name)
    return names

"""Finds the files of a manifest: by file, folder or pattern, in folders of table formats by log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fsspec.utils import glob_translate

from pipeline.errors import ManifestError
from pipeline.in_order import in_order
from pipeline.manifest.delta import live_files_of_delta
from pipeline.manifest.iceberg import current_metadata, live_files_of_iceberg
from pipeline.manifest.partitions import Texts, is_partition, partitions_of, refuse_mixed
from pipeline.manifest.table_formats import (
    METADATA_SUFFIXES,
    Format,
    LiveFile,
    format_at,
    is_mark,
    tables_in,
)
from pipeline.storage.clients import filesystem_of
from pipeline.storage.folder import Folder, Level, absolute_url, folder_and_name

_SUFFIXES = (".parquet", ".pq")
_DUCKLAKE = "ducklake-"
_LISTING_THREADS = 16


@dataclass(frozen=True)
class FoundFile:
    """A Parquet file of the manifest.

    Attributes:
        root: the URL of the folder in which it was found; its place there is its name in messages.
        partitions: of its folders `key=value`; {} for a file of a table.
        live: which of its rows are live, if it belongs to a table of Delta or Iceberg.
    """

    url: str
    root: str
    partitions: Texts = field(default_factory=dict)
    live: LiveFile | None = None


def find_files(url: str, options: Mapping[str, Any]) -> list[FoundFile]:
    """The Parquet files that a manifest URL names. Raises ManifestError if there are none."""
    url = absolute_url(url)
    if url.split("?", 1)[0].endswith(METADATA_SUFFIXES):
        found = live_files_of_iceberg(url, options)
        return [FoundFile(live.url, live.table, live=live) for live in found]
    place, paths, walked = _paths(url, options)
    tables = _Tables(place.url, options, walked)
    is_whole = walked is not None and place.url == url.rstrip("/")
    by_root: dict[str | None, list[str]] = {root: [] for root in tables.below if is_whole}
    for path in paths:
        by_root.setdefault(tables.root_of(place.url_of(path)), []).append(path)
    files: list[FoundFile] = []
    for root, inside in by_root.items():
        if root is None:
            files += _plain_files(url, place, inside)
        else:
            wanted = None if is_whole and root in tables.below else map(place.url_of, inside)
            files += _table_files(url, tables, root, wanted)
    if not files:
        raise ManifestError(
            f"the manifest {url} is not a Parquet file, a folder with Parquet files, or a pattern "
            "that matches some: check the path, and whether these credentials may list it"
        )
    return files


def _plain_files(url: str, place: Folder, paths: Sequence[str]) -> Iterator[FoundFile]:
    partitions = {path: partitions_of(place.url, path) for path in paths}
    refuse_mixed(url, partitions)
    for path, texts in partitions.items():
        if path.rpartition("/")[2].startswith(_DUCKLAKE):
            raise ManifestError(
                f"{place.url_of(path)} is a file of a DuckLake: only its catalog says which files "
                "and rows are live. Write them to a plain Parquet file with DuckDB (COPY … TO …)"
            )
        yield FoundFile(place.url_of(path), place.url, texts)


def _table_files(
    url: str, tables: _Tables, root: str, wanted: Iterable[str] | None
) -> Iterator[FoundFile]:
    """The live files of a table; `wanted`: of these URLs alone, None: of all."""
    kind, options = tables.formats[root], tables.options
    assert kind is not None  # `root` is the folder of a table
    files = {_key(live.url, options): live for live in _live_files(root, kind, options)}
    if wanted is not None:
        keys = {_key(each, options) for each in wanted}
        files = {key: live for key, live in files.items() if key in keys}
        if not files:
            raise ManifestError(
                f"the manifest {url} names files inside of the {kind} table {root}, and none of "
                f"them is live: all hold deleted or earlier rows. Name the table's folder {root}"
            )
    place = tables.place if f"{root}/".startswith(f"{tables.place}/") else root
    yield from (FoundFile(live.url, place, live=live) for live in files.values())


def _key(url: str, options: Mapping[str, Any]) -> str:
    """The path in its store, by which URLs with other spellings of the protocol are equal."""
    return filesystem_of(url, options)[1]


def _live_files(url: str, kind: Format, options: Mapping[str, Any]) -> list[LiveFile]:
    """The live data files of a table. Raises ManifestError if its format cannot be read here."""
    if kind is Format.DELTA:
        return live_files_of_delta(Folder.open(url, options))
    if kind is Format.ICEBERG:
        return live_files_of_iceberg(current_metadata(Folder.open(url, options)), options)
    raise ManifestError(
        f"{url} is the folder of a {kind} table: it can also hold files of deleted and earlier "
        "rows, and only the table's log says which are live. This format is not read: write the "
        "rows of the table to plain Parquet files, for example with Spark"
    )


class _Tables:
    """Finds the folder of the table that a file lies in. Asks the store about a folder once."""

    def __init__(self, place: str, options: Mapping[str, Any], walked: _Walked | None):
        """`walked`: the folders below the URL `place`, if they are known."""
        self.place, self.options = place, options
        formats = {} if walked is None else walked.formats
        self.formats = {f"{place}/{path}".rstrip("/"): kind for path, kind in formats.items()}
        self.below = sorted(url for url, kind in self.formats.items() if kind is not None)

    def root_of(self, url: str) -> str | None:
        """The URL of the nearest folder above a file that is the folder of a table, or None."""
        folder = folder_and_name(url)[0]
        while folder and not folder.endswith((":", ":/")):
            if folder not in self.formats:
                self.formats[folder] = format_at(folder, self.options)
            if self.formats[folder] is not None:
                return folder
            folder = folder.rpartition("/")[0]
        return None


@dataclass(frozen=True)
class _Walked:
    """The files of interest in a folder, at any depth, and the format of each folder below."""

    paths: list[str]
    formats: dict[str, Format | None]


def _walk(folder: Folder, is_wanted: Callable[[str], bool]) -> _Walked:
    """Lists a folder level by level, the folders of a level side by side, hidden ones not at all.

    Keeps the paths of the wanted files, and of folders; other files can be millions.
    """
    walked, marks = _Walked([], {}), list[str]()

    def look(path: str) -> Level:
        return folder.level(
            path, lambda name: is_wanted(_joined(path, name)) or is_mark(_joined(path, name))
        )

    level = [""]
    with ThreadPoolExecutor(_LISTING_THREADS, thread_name_prefix="listing") as pool:
        while level:
            below: list[str] = []
            for path, found in zip(
                level, in_order(pool, look, level, 2 * _LISTING_THREADS), strict=True
            ):
                files = [_joined(path, name) for name in found.files]
                folders = [_joined(path, name) for name in found.folders]
                if files or folders:
                    walked.formats[path] = None
                walked.paths.extend(filter(is_wanted, files))
                marks.extend(filter(is_mark, files))
                marks.extend(f"{each}/" for each in folders if is_mark(f"{each}/"))
                below.extend(each for each in folders if not is_hidden(f"{each}/x"))
            level = below
    walked.formats.update(tables_in(marks))
    walked.paths.sort()
    return walked


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _paths(url: str, options: Mapping[str, Any]) -> tuple[Folder, list[str], _Walked | None]:
    """The files that a URL names: their common folder, and their paths in it.

    Last comes all that is in that folder, if all of it had to be listed.
    """
    parent, name = folder_and_name(url.rstrip("/"))
    folder = Folder.open(parent or "/", options)
    if folder.is_file(name):
        return folder, [name], None
    folder = Folder.open(url, options)
    walked = _walk(folder, _is_data)  # empty files too: they are an error
    if walked.paths or any(walked.formats.values()) or not is_pattern(url):
        return folder, walked.paths, walked
    base, pattern = split_pattern(url)
    folder = Folder.open(base, options)
    if "**" not in pattern:
        return folder, [path for path in folder.glob(pattern) if not is_hidden(path)], None
    walked = _walk(folder, lambda path: matches(pattern, path))
    return folder, walked.paths, walked


def is_pattern(url: str) -> bool:
    return any(mark in url for mark in "*?[")


def split_pattern(url: str) -> tuple[str, str]:
    """A pattern's URL, split before its first part with a wildcard."""
    parts = url.split("/")
    first = next(index for index, part in enumerate(parts) if is_pattern(part))
    return "/".join(parts[:first]), "/".join(parts[first:])


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern names a file; hidden ones are never named by a pattern."""
    return bool(re.match(glob_translate(pattern), path)) and not is_hidden(path)


def _is_data(path: str) -> bool:
    return path.lower().endswith(_SUFFIXES) and not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder above it, is hidden, as Spark sees it: a folder whose name begins
    with _ is a partition if it is `_key=value`."""
    *folders, name = path.split("/")
    return name.startswith((".", "_")) or any(
        part.startswith(".") or (part.startswith("_") and not is_partition(part))
        for part in folders
    )

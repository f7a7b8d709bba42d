"""Lists what is directly in a folder, a part at a time; the client keeps nothing of it."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import fsspec

from pipeline.storage.clients import is_s3

Entries: TypeAlias = list[tuple[str, bool]]
"""What is in a folder: each name, and whether it is that of a folder."""


def pages(
    fs: fsspec.AbstractFileSystem, full: str, ask: Callable[[Callable[[], Any]], Any]
) -> Iterator[Entries]:
    """The entries of the folder `full`; none if it does not exist.

    On S3 a page is an answer of the server, 1,000 entries. Other clients give all of a folder at
    once. `ask` runs a request, with retries.
    """
    if is_s3(fs):
        yield from _pages_of_s3(fs, full, ask)
        return

    def look() -> Entries:
        fs.invalidate_cache(full)
        try:
            found = fs.ls(full, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            found = []
        fs.invalidate_cache(full)  # it would stay in memory
        paths = ((entry["name"].rstrip("/"), entry["type"]) for entry in found)
        return [
            (posixpath.basename(path), kind == "directory")
            for path, kind in paths
            if path != full and kind in ("directory", "file")
        ]

    yield ask(look)


def _pages_of_s3(
    fs: fsspec.AbstractFileSystem, full: str, ask: Callable[[Callable[[], Any]], Any]
) -> Iterator[Entries]:
    bucket, key, _ = fs.split_path(full)
    start = f"{key.rstrip('/')}/" if key else ""
    place = {"Bucket": bucket, "Prefix": start, "Delimiter": "/"}

    def look() -> Any:
        try:
            return fs.call_s3("list_objects_v2", **place)
        except FileNotFoundError:
            return {}

    while True:
        page = ask(look)
        folders = (each["Prefix"][len(start) : -1] for each in page.get("CommonPrefixes", ()))
        files = (each["Key"][len(start) :] for each in page.get("Contents", ()))
        yield [*((name, True) for name in folders), *((name, False) for name in files if name)]
        if not page.get("IsTruncated"):
            return
        place["ContinuationToken"] = page["NextContinuationToken"]

"""Where a set lies: a folder or file, or a dataset of the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from jobs.manifest_from.source import Source
from pipeline.errors import ManifestError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def folder_of(source: Source, given: str, split: str | None = None) -> Path:
    """The folder or file of that name, or else the dataset of that id, from the cache or the hub.

    `split`: of a dataset of the hub only files with this name in their path are fetched.

    Raises ManifestError if there is neither.
    """
    path = Path(given).expanduser()
    if path.exists():
        return path
    if not source.hub_id or not _HUB_ID.fullmatch(given):
        raise ManifestError(f"there is no {given}{_or_hub(source)}")
    from huggingface_hub import snapshot_download

    try:
        wanted = None if split is None else [f"*{split}*"]
        return Path(snapshot_download(given, repo_type="dataset", allow_patterns=wanted))
    except Exception as error:  # the hub's client raises from several libraries
        raise ManifestError(
            f"{given!r} is not a local folder, and could not be downloaded from the Hugging Face "
            f"hub: {type(error).__name__}: {error}"
        ) from error


def _or_hub(source: Source) -> str:
    return f"; on the hub {source.name} is {source.hub_id}" if source.hub_id else ""

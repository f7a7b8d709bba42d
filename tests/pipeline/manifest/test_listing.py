"""A manifest's folder is listed level by level, and nothing is kept of what is not Parquet."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

import pytest
import s3fs

from pipeline.manifest.files import Manifest
from pipeline.manifest.find import find_files
from pipeline.storage.folder import Folder
from tests.servers.stores import Store

COLUMNS = {"image": ["a.png"], "target_prompt": ["x"]}


def test_files_at_every_depth_are_found_and_hidden_folders_are_not_listed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("_day=1/c/m", "_day=2/m", "_old/m", ".plan/1/m", "_day=1/_tmp/x/m"):
        store.put_table(f"data/{path}.parquet", COLUMNS)
    for number in range(30):
        store.put(f"data/_day=1/pictures/{number}.png", b"picture")
    listed = []
    level = Folder.level

    def noted(self: Folder, prefix: str = "", *arguments: Any) -> Any:
        listed.append(prefix)
        return level(self, prefix, *arguments)

    monkeypatch.setattr(Folder, "level", noted)
    found = find_files(store.url("data"), store.storage_options)
    assert sorted(file.url for file in found) == [
        store.url(f"data/{path}.parquet") for path in ("_day=1/c/m", "_day=2/m")
    ]
    assert listed[:5] == ["", "_day=1", "_day=2", "_day=1/c", "_day=1/pictures"]
    assert not any("_old" in path or "_tmp" in path or ".plan" in path for path in listed)


PAGE = 1000


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_pictures_beside_a_manifest_take_no_memory_and_a_request_a_thousand(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's answers are made up: it would take minutes to put so many objects there."""
    pages = 30
    store.put_table("data/m.parquet", COLUMNS)
    calls: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def answered(self: Any, method: str, *arguments: Any, **keys: Any) -> Any:
        calls[method] += 1
        prefix = keys.get("Prefix", "")
        if method != "list_objects_v2" or not prefix.endswith("/data/"):
            return await call(self, method, *arguments, **keys)
        page = int(keys.get("ContinuationToken", 0))
        names = [f"{prefix}{page:04d}-{number:04d}.png" for number in range(PAGE)]
        if page == pages - 1:
            names.append(f"{prefix}m.parquet")
        return {
            "Contents": [{"Key": name, "Size": 1, "ETag": name} for name in names],
            "IsTruncated": page < pages - 1,
            "NextContinuationToken": str(page + 1),
        }

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", answered)
    find_files(store.url("data"), store.storage_options)  # loads what is loaded once
    calls.clear()
    tracemalloc.start()
    (file,) = find_files(store.url("data"), store.storage_options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.url == store.url("data/m.parquet")
    assert peak < pages * PAGE * 100
    assert calls["list_objects_v2"] < pages + 30


def test_a_folder_with_nothing_but_pictures_is_no_manifest(store: Store) -> None:
    store.put("data/a/b/1.png", b"picture")
    with pytest.raises(Exception, match="is not a Parquet file, a folder with Parquet files"):
        Manifest.open(store.url("data"), store.storage_options)

"""The peer of `fpe bench scale`: a bare Ray Data script, as one would write it for one afternoon.

    python -m jobs.bench.scale.bare_ray MANIFEST OUTPUT STORAGE_OPTIONS

It reads, fits, encodes and writes the same pictures as a run with `editor: none`, source and edit,
on all CPUs, and promises nothing: no ids, no metadata, no ledger, no lease, no retry, no resume,
no check of what is read; one bad row ends it. The last line that it prints has its figures as JSON.
"""

from __future__ import annotations

import functools
import io
import json
import posixpath
import sys
import time
from typing import Any

import fsspec
import ray
import ray.data
from PIL import Image, ImageOps

from jobs.bench.scale.memory import polled_memory
from jobs.bench.scale.pictures import QUALITY, SIZE_PX

_BLOCKS = 64


def edit_row(row: dict[str, Any], manifest: str, output: str, options: Any) -> dict[str, Any]:
    """Makes the pictures of one row of the manifest."""
    files, folder = fsspec.url_to_fs(output, **options)
    data = row["image"]
    if isinstance(data, str):
        data = files.cat_file(
            posixpath.join(posixpath.dirname(files._strip_protocol(manifest)), data)
        )
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.fit(opened.convert("RGB"), (SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)
    for kind in ("source", "edited"):
        sink = io.BytesIO()
        image.save(sink, "WEBP", quality=QUALITY)
        files.pipe_file(f"{folder}/{kind}/{row['id']}.webp", sink.getvalue())
    return {"id": row["id"]}


def main(manifest: str, output: str, options: dict[str, Any]) -> dict[str, Any]:
    """Makes the pictures; returns their number, the seconds, and the largest reader in bytes."""
    began = time.monotonic()
    files, folder = fsspec.url_to_fs(output, **options)
    with polled_memory() as memory:
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        files.makedirs(f"{folder}/source", exist_ok=True)
        files.makedirs(f"{folder}/edited", exist_ok=True)
        rows = ray.data.read_parquet(manifest, filesystem=files, columns=["id", "image"])
        rows = rows.repartition(_BLOCKS)  # one file is one block, which is one core
        edit = functools.partial(edit_row, manifest=manifest, output=output, options=options)
        made = rows.map(edit).count()
        ray.shutdown()
    seconds = time.monotonic() - began
    return {"edits": made, "seconds": seconds, "reader_bytes": memory.reader_bytes}


if __name__ == "__main__":
    found = main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    sys.stdout.write(json.dumps(found) + "\n")

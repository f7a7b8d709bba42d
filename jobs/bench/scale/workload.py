"""The workload that is measured: a manifest of any length, 64 small images, and a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.job.job import Job

SIZE_PX = 64
PICTURES = 64
"""Image files that the rows share. 10^7 files would be too many for a file system, and the engine
reads one file per row anyway."""
QUOTA = 1000
"""Accepted edits of each of the three shapes, in the phase with quotas."""
_ROWS_AT_ONCE = 50_000
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("target_prompt", pa.list_(pa.string())),
        ("shape", pa.string()),
    ]
)


def write_manifest(folder: Path, rows: int, edits_per_row: int) -> Path:
    """Writes a manifest. A row has an id, `edits_per_row` prompts, and a column that is carried
    along.

    The same arguments give the same rows. A manifest that exists already is kept.
    """
    _write_pictures(folder / "sources")
    path = folder / f"manifest-{rows}x{edits_per_row}.parquet"
    if path.exists():
        return path
    unfinished = path.with_suffix(".part")
    with pq.ParquetWriter(unfinished, _SCHEMA, compression="zstd") as writer:
        for first in range(0, rows, _ROWS_AT_ONCE):
            numbers = range(first, min(rows, first + _ROWS_AT_ONCE))
            writer.write_table(_rows(numbers, edits_per_row))
    unfinished.rename(path)
    return path


def scale_job(manifest: Path, output: Path, *, quota: int | None = None) -> Job:
    """A job like any other, except that it has no editor. `quota`: accepted edits of each shape."""
    values: dict[str, Any] = {
        "manifest": str(manifest),
        "output": str(output),
        "editor": "none",
        "edit": {"size_px": SIZE_PX},
    }
    if quota is not None:
        values["quotas"] = {"by": ["shape"], "accepted": quota}
    return Job.model_validate(values)


def _rows(numbers: range, edits_per_row: int) -> pa.Table:
    columns = {
        "id": [f"scene-{n:08d}" for n in numbers],
        "image": [f"sources/{n % PICTURES}.png" for n in numbers],
        "target_prompt": [
            [f"a picture of object {n} in style {style}" for style in range(edits_per_row)]
            for n in numbers
        ],
        "shape": [("cup", "cone", "heart")[n % 3] for n in numbers],
    }
    return pa.table(columns, schema=_SCHEMA)


def _write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX] / SIZE_PX
    for number in range(PICTURES):
        phase = 1.0 + 0.3 * number
        bands = [np.sin(5 * x * phase), np.cos(4 * y + phase), np.sin(6 * (x - y) + phase)]
        pixels = (np.stack(bands, axis=-1) * 127 + 128).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")

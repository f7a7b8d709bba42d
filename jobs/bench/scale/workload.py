"""What is measured: a manifest of any length over a few small pictures, and a job for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.job.job import Job

SIZE_PX = 64
PICTURES = 64
"""Files that the rows share: a file system does not keep 10^7 sources, and the engine reads one per
row whichever it is."""
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
    """A manifest with an id and so many prompts in every row, and a column to carry.

    The same call gives the same rows. What is there already stays.
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


def scale_job(manifest: Path, output: Path) -> Job:
    """Everything as a real job has it, but the editor."""
    return Job.model_validate(
        {
            "manifest": str(manifest),
            "output": str(output),
            "editor": "none",
            "edit": {"size_px": SIZE_PX},
        }
    )


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

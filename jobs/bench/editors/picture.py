"""The picture of all methods: a row per type of edit, the source, the exact answer, each output."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from fpe_core.still_life.benchmark.edits import edits_of_scene
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS
from jobs.bench.editors.figures import Rows
from jobs.bench.editors.parts import png_of
from jobs.bench.pictures import INK, RIGHT, WRONG, Cell, draw_grid

MOST_BYTES = 300_000
_COLOURS = (256, 192, 128, 96, 64, 32)
_EMPTY_RGB = (238, 238, 238)


def methods_grid(rows: Rows, column: str) -> Image.Image | None:
    """The grid of one column; a caption is green if the edit shows the value asked for, else red.

    Args:
        rows: with the outputs (`PART_SCHEMA`) and their column.
        column: which of them to show.

    Returns:
        an RGB image; None if no row has an output.
    """
    shown = [row for row in rows if row["column"] == column]
    drawn = [cells for factor in FACTORS if (cells := list(_cells(shown, factor)))]
    return draw_grid(drawn) if drawn else None


def save_small(image: Image.Image, path: pathlib.Path) -> None:
    """Saves a PNG with as many colours, 256 at most, as fit into `MOST_BYTES`."""
    encoded = b""
    for colours in _COLOURS:
        encoded = png_of(image.quantize(colours))
        if len(encoded) <= MOST_BYTES:
            break
    path.write_bytes(encoded)


def _cells(rows: Rows, factor: str) -> Iterator[Cell]:
    """One edit of a type: source, exact answer, and what every method made of it."""
    of_factor = [row for row in rows if row["factor"] == factor]
    first = next((row for row in of_factor if row["png"]), None)
    if first is None:
        return
    (edit,) = edits_of_scene(first["seed"], [factor])
    size_px = _image(first["png"]).width
    yield render(edit.source, size_px), edit.source_value, INK
    yield render(edit.answer, size_px), f"exact: {edit.target_value}", INK
    yield from (_output(row, size_px) for row in of_factor if row["seed"] == edit.seed)


def _output(row: Mapping[str, Any], size_px: int) -> Cell:
    """A method's output; an empty field for an edit that it cannot make."""
    if row["not_applicable"]:
        empty = Image.new("RGB", (size_px, size_px), _EMPTY_RGB)
        return empty, f"{row['method']}: n/a", INK
    return _image(row["png"]), row["method"], RIGHT if row["success"] else WRONG


def _image(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB")

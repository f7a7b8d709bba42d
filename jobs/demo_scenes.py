"""The input of the demo job: still-life scenes and a manifest with several edits of each."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fpe_core.still_life import (
    FACTORS,
    Scene,
    caption,
    counterfactual,
    object_mask,
    render,
    sample_scene,
)

SCENES = 24
SIZE_PX = 128
MANIFEST_NAME = "manifest.parquet"

_FIRST_SEED = 2000
"""Scenes of seeds below 1,000,000 were never trained on."""

_CHANGES = (("colour", 3), ("colour", 6), ("background", 2), ("material", 1), ("style", 1))
"""The edits of a scene: a factor, and by how many places its value moves in the list of values."""

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("source_prompt", pa.string()),
        ("target_prompt", pa.list_(pa.string())),
        ("target_labels", pa.list_(pa.struct([(factor, pa.string()) for factor in FACTORS]))),
        ("edit_type", pa.list_(pa.string())),
        *((factor, pa.string()) for factor in FACTORS),
        ("box", pa.list_(pa.int32())),
    ]
)


@dataclasses.dataclass(frozen=True)
class DemoScenes:
    """What was written: the manifest, the number of scenes and of the edits it asks for."""

    manifest: pathlib.Path
    scenes: int
    edits: int


def write_scenes(folder: pathlib.Path, count: int = SCENES) -> DemoScenes:
    """Renders `count` scenes of 128 px into `folder` and writes a manifest next to them.

    A row of the manifest has the scene's caption as source prompt, five target prompts, every
    factor of the scene as a column, and the object's box (x, y, width, height in pixels). The type
    of an edit is the factor that it changes, and its label is the new value. Files that already
    have the right content are not written again.
    """
    rows = []
    for number in range(count):
        scene = sample_scene(_FIRST_SEED + number)
        edits = list(edits_of(scene))
        name = f"scene-{number:03d}"
        _write(folder / "images" / f"{name}.png", _png(scene))
        rows.append(
            {
                "id": name,
                "image": f"images/{name}.png",
                "source_prompt": caption(scene),
                "target_prompt": [caption(edited) for _, edited in edits],
                "target_labels": [{factor: getattr(edited, factor)} for factor, edited in edits],
                "edit_type": [factor for factor, _ in edits],
                **{factor: getattr(scene, factor) for factor in FACTORS},
                "box": object_box(scene),
            }
        )
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    data = io.BytesIO()
    pq.write_table(table, data)
    manifest = folder / MANIFEST_NAME
    _write(manifest, data.getvalue())
    return DemoScenes(manifest, count, sum(len(row["target_prompt"]) for row in rows))


def edits_of(scene: Scene) -> Iterator[tuple[str, Scene]]:
    """(factor, scene): two other colours, another background, another material, another style."""
    for factor, step in _CHANGES:
        value = _along(factor, getattr(scene, factor), step)
        yield factor, counterfactual(scene, **{factor: value})


def object_box(scene: Scene, size_px: int = SIZE_PX) -> list[int]:
    """The box around the object: x, y, width, height in pixels."""
    rows, columns = np.nonzero(object_mask(scene, size_px))
    left, top = int(columns.min()), int(rows.min())
    return [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]


def _along(factor: str, value: str, step: int) -> str:
    values = FACTORS[factor]
    return values[(values.index(value) + step) % len(values)]


def _png(scene: Scene) -> bytes:
    data = io.BytesIO()
    render(scene, SIZE_PX).save(data, "PNG")
    return data.getvalue()


def _write(path: pathlib.Path, data: bytes) -> None:
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

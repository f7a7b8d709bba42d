"""Measures what one source with many prompts takes of a worker: a program of its own.

    python -m tests.builders.edit_memory FOLDER PROMPTS SIZE_PX

Every edit is another image in memory, as with a model, but copied from its source, so that the
seconds are those of encoding and writing. Prints as JSON the bytes by which the process grew at its
peak, the edits that were made when the first file was there, and the files at the end.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fpe_core import EditInputs, EditParameters, EditResult
from pipeline.edit.actor import EditActor
from pipeline.edit.no_editor import NoEditor
from pipeline.edit.settings import EditSettings
from pipeline.read.decode import PIXEL_FIELDS
from pipeline.write.image_format import ImageFormat
from tests.builders.work_rows import work_row, work_table
from tests.faults.peak_memory import peak_memory


class CopyingEditor(NoEditor):
    """Makes a new image for every edit."""

    def __init__(self, folder: Path) -> None:
        self.edits = 0
        self.edits_at_first_file: int | None = None
        self._folder = folder

    def edit(
        self,
        sources: Any,
        target_prompts: Sequence[Sequence[str]],
        parameters: EditParameters | None = None,
        inputs: Sequence[Sequence[EditInputs]] | None = None,
    ) -> EditResult:
        if self.edits_at_first_file is None and any(self._folder.rglob("edited/*")):
            self.edits_at_first_file = self.edits
        made = super().edit(sources, target_prompts, parameters, inputs)
        edits = [
            tuple(replace(edit, image=edit.image.copy()) for edit in edits) for edits in made.edits
        ]
        self.edits += sum(map(len, edits))
        return replace(made, edits=tuple(edits))


def main() -> None:
    """Entry point."""
    folder, prompts, size_px = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    noise = np.random.default_rng(0).integers(0, 255, (size_px // 8, size_px // 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((size_px, size_px))
    row = work_row(
        0,
        image_bytes=b"-",
        targets=[f"a cat {number}" for number in range(prompts)],
        parameters=EditParameters(width_px=size_px, height_px=size_px),
    )
    decoded = work_table([row]).drop_columns(["image_bytes"])
    for field, value in zip(PIXEL_FIELDS, (image.tobytes(), "", "", ""), strict=True):
        decoded = decoded.append_column(field, [[value]])
    actor = EditActor(
        EditSettings(
            output=str(folder),
            checkpoint="none",
            checkpoint_fingerprint="none",
            makes_edits=False,
            image_format=ImageFormat("jpeg", 80),
            encoders=2,
        )
    )
    editor = CopyingEditor(folder)
    actor._editor = editor
    with peak_memory() as growth:
        outcomes = actor(decoded)
    said = {
        "peak_bytes": growth[0],
        "edits_at_first_file": editor.edits_at_first_file,
        "accepted": outcomes["outcome"].to_pylist().count("accepted"),
        "files": sum(1 for _ in folder.rglob("*.jpg")),
        "threads": threading.active_count(),
    }
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()

"""Workloads with pictures of the size that people have: by URI, embedded, many prompts, quotas."""

from __future__ import annotations

import io
import posixpath
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.job.job import Job

SIZE_PX, QUALITY = 512, 95
WIDTH_PX, HEIGHT_PX = 1280, 960
SHAPES = ("cup", "cone", "heart")
DIFFERENT = 8
"""Pictures that differ; rows use them in turn, and each row's picture is read and decoded."""
PROMPTS = 250
"""Prompts of a source in the workload with many of them."""
_ROWS_A_GROUP = 100  # as `datasets` writes pictures


@dataclass(frozen=True)
class Workload:
    """What is edited.

    Attributes:
        rows: rows of the manifest; each has `prompts` prompts.
        embedded: the manifest has the pictures' bytes, instead of names of files beside it.
        quota: accepted edits wanted of each of the three shapes; None: no quotas.
    """

    name: str
    rows: int
    prompts: int = 1
    embedded: bool = False
    quota: int | None = None

    @property
    def has_peer(self) -> bool:
        """Whether a bare script would write the same pictures."""
        return self.prompts == 1 and self.quota is None

    def job(self, folder: str, output: str, storage_options: dict[str, Any]) -> Job:
        """The job over the manifest that `write` put into `folder`."""
        values: dict[str, Any] = {
            "manifest": f"{folder}/{self._file}",
            "output": output,
            "storage_options": storage_options,
            "editor": "none",
            "edit": {"size_px": SIZE_PX},
            "images": {"format": "webp", "quality": QUALITY},
        }
        if self.quota is not None:
            values["quotas"] = {"by": ["shape"], "accepted": self.quota}
        return Job.model_validate(values)

    def write(self, folder: str, storage_options: dict[str, Any]) -> tuple[str, int]:
        """Writes manifest and pictures; returns the manifest's URL and its bytes."""
        files, path = fsspec.url_to_fs(folder, **storage_options)
        pictures = _pictures()
        if not self.embedded:
            files.makedirs(f"{path}/pictures", exist_ok=True)
            for number, data in enumerate(pictures):
                files.pipe_file(f"{path}/pictures/{number}.jpg", data)
        sink = io.BytesIO()
        pq.write_table(
            self._table(pictures), sink, row_group_size=_ROWS_A_GROUP, use_dictionary=["shape"]
        )
        files.makedirs(path, exist_ok=True)
        files.pipe_file(posixpath.join(path, self._file), sink.getvalue())
        return f"{folder}/{self._file}", len(sink.getvalue())

    @property
    def _file(self) -> str:
        return f"{self.name.replace(' ', '-')}-{self.rows}.parquet"

    def _table(self, pictures: list[bytes]) -> pa.Table:
        numbers = range(self.rows)
        images = (
            [pictures[n % DIFFERENT] for n in numbers]
            if self.embedded
            else [f"pictures/{n % DIFFERENT}.jpg" for n in numbers]
        )
        return pa.table(
            {
                "id": [f"scene-{n:06d}" for n in numbers],
                "image": images,
                "target_prompt": [
                    [f"object {n} in style {style}" for style in range(self.prompts)]
                    for n in numbers
                ],
                "shape": [SHAPES[n % len(SHAPES)] for n in numbers],
            }
        )


def workloads(pictures: int) -> list[Workload]:
    """The workloads with `pictures` edits each."""
    return [
        Workload("by URI", pictures),
        Workload("embedded", pictures, embedded=True),
        Workload("many prompts", max(1, pictures // PROMPTS), prompts=PROMPTS),
        Workload("quotas", pictures, quota=max(1, pictures // 4)),
    ]


def _pictures() -> list[bytes]:
    """JPEGs with the spectrum of photographs (amplitude 1/f^1.3), always the same."""
    rng = np.random.default_rng(0)
    y = np.fft.fftfreq(HEIGHT_PX)[:, None]
    x = np.fft.rfftfreq(WIDTH_PX)
    falling = np.maximum(np.hypot(x, y), 1 / WIDTH_PX) ** -1.3
    made = []
    for _ in range(DIFFERENT):
        noise = rng.standard_normal((3, HEIGHT_PX, WIDTH_PX // 2 + 1)) + 1j * rng.standard_normal(
            (3, HEIGHT_PX, WIDTH_PX // 2 + 1)
        )
        noise[1:] = 0.8 * noise[0] + 0.2 * noise[1:]  # colours of a photograph go together
        planes = np.fft.irfft2(noise * falling, s=(HEIGHT_PX, WIDTH_PX))
        planes *= 50 / planes.std()
        pixels = (planes + 128).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        sink = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(sink, "JPEG", quality=90)
        made.append(sink.getvalue())
    return made

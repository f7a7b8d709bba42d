"""The workload that is timed: images, and prompts for each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from fpe_core import EditParameters

_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
_THINGS = ("heart", "star", "circle", "square")


@dataclass(frozen=True)
class BenchWorkload:
    """S sources, each edited N times with the same parameters.

    Attributes:
        images: S RGB images of the parameters' size.
        source_prompts: one per source; may be empty.
        target_prompts: N per source.
        parameters: the parameters of all edits.
    """

    images: tuple[Image.Image, ...]
    source_prompts: tuple[str, ...]
    target_prompts: tuple[tuple[str, ...], ...]
    parameters: EditParameters

    @property
    def edits(self) -> int:
        return sum(map(len, self.target_prompts))

    def without_source_prompts(self) -> BenchWorkload:
        """The same workload with empty source prompts."""
        return replace(self, source_prompts=("",) * len(self.images))

    def cut(self, sources: int, edits_per_source: int) -> BenchWorkload:
        """The workload of the first sources, and the first edits of each."""
        return BenchWorkload(
            self.images[:sources],
            self.source_prompts[:sources],
            tuple(prompts[:edits_per_source] for prompts in self.target_prompts[:sources]),
            self.parameters,
        )


def make_workload(sources: int, edits_per_source: int, parameters: EditParameters) -> BenchWorkload:
    """A workload with a different image per source and prompt per edit; the same in every call."""
    prompts = [
        f"a photo of a {colour} {thing} {number}"
        for number in range(1 + edits_per_source // (len(_COLOURS) * len(_THINGS)))
        for thing in _THINGS
        for colour in _COLOURS
    ]
    return BenchWorkload(
        images=tuple(
            _picture(s, parameters.width_px, parameters.height_px) for s in range(sources)
        ),
        source_prompts=tuple(f"a photo of a plain {_THINGS[s % 4]}" for s in range(sources)),
        target_prompts=(tuple(prompts[:edits_per_source]),) * sources,
        parameters=parameters,
    )


def _picture(number: int, width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = x / width, y / height
    phase = 1.0 + number * 0.37
    bands = [np.sin(9 * x * phase), np.cos(7 * y + phase), np.sin(11 * (x - y) + phase)]
    return Image.fromarray((np.stack(bands, -1) * 127 + 128).clip(0, 255).astype(np.uint8))

"""Renders the training scenes once and keeps them as one array file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fpe_core.still_life.architecture import IMAGE_SIZE_PX
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import Scene, sample_scene

FIRST_TRAINING_SEED = 1_000_000
"""Seeds below this one are never trained on: they are for demonstrations, validation and tests."""


def training_scenes(count: int) -> list[Scene]:
    """The scenes of the first `count` training seeds."""
    return [sample_scene(FIRST_TRAINING_SEED + index) for index in range(count)]


def rendered(folder: Path, scenes: list[Scene]) -> NDArray[np.uint8]:
    """The scenes' pictures, (N, 128, 128, 3), mapped from a file that is drawn where it lacks."""
    path = folder / f"images_{len(scenes)}.npy"
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        shape = (len(scenes), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
        images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        for index, scene in enumerate(scenes):
            images[index] = np.asarray(render(scene, IMAGE_SIZE_PX))
        images.flush()
        partial.replace(path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def as_pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """(B, H, W, 3) bytes to (B, 3, H, W) float32 in -1..1."""
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    return (pixels / 127.5 - 1.0).contiguous()

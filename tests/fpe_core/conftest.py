"""Small random Stable Diffusions, on disk and loaded, shared by the tests of fpe_core."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fpe_core import Checkpoint, load_checkpoint
from tests.builders.tiny_checkpoint import build_tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Checkpoint:
    return load_checkpoint(tiny_folder, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def tiny_float64(tiny_folder: Path) -> Checkpoint:
    return load_checkpoint(tiny_folder, device="cpu", dtype=torch.float64)


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Three different smooth images of 64 x 64 pixels."""
    y, x = np.mgrid[0:64, 0:64] / 64
    return [
        Image.fromarray(
            np.stack(
                [128 + 127 * np.sin(6 * x * (i + 1)), 255 * y, 255 * np.abs(x - y) ** (i + 1)], -1
            ).astype(np.uint8)
        )
        for i in range(3)
    ]

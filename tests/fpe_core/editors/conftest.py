"""Both dtypes of the small random Stable Diffusion."""

from __future__ import annotations

import pytest

from fpe_core import Checkpoint


@pytest.fixture(scope="module", params=["float32", "float64"])
def checkpoint(
    request: pytest.FixtureRequest, tiny: Checkpoint, tiny_float64: Checkpoint
) -> Checkpoint:
    return tiny if request.param == "float32" else tiny_float64

"""The built-in world: still lifes with known factors, and the small model trained on them."""

from __future__ import annotations

from fpe_core.checkpoint.files import CHECKPOINT_DIR
from fpe_core.still_life.render import object_mask, render
from fpe_core.still_life.scene import (
    FACTORS,
    Scene,
    caption,
    counterfactual,
    factors_in,
    sample_scene,
)

__all__ = [
    "CHECKPOINT_DIR",
    "FACTORS",
    "Scene",
    "caption",
    "counterfactual",
    "factors_in",
    "object_mask",
    "render",
    "sample_scene",
]

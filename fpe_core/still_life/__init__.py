"""The built-in world: still lifes with known factors, and the small model trained on them."""

from pathlib import Path

from fpe_core.still_life.render import object_mask, render
from fpe_core.still_life.scene import (
    FACTORS,
    Scene,
    caption,
    counterfactual,
    factors_in,
    sample_scene,
)

CHECKPOINT_DIR: Path = Path(__file__).parent / "checkpoint"
"""A diffusers folder for `StableDiffusionPipeline.from_pretrained`."""

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

"""A CLIP while it learns: beside captions it is asked for factors and outlines.

Captions alone teach colours within minutes, but shapes hardly at all: to see a shape is to tell the
object from its ground first, whatever their colours. The renderer knows both, so a linear layer
reads the object's outline from the patches halfway up, and another one the factors at the top. Both
layers are left behind when the scorer is exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    layer_norm,
    normalize,
)
from transformers import CLIPModel

from fpe_core.still_life.architecture import IMAGE_SIZE_PX
from fpe_core.still_life.half_copy import HalfCopy
from fpe_core.still_life.render import object_mask
from fpe_core.still_life.scene import FACTORS, Scene
from fpe_core.still_life.scorer_architecture import PATCH_PX

_OUTLINE_LAYER = 3
_CELLS = 4  # of the outline, along a patch's edge
_PATCHES = IMAGE_SIZE_PX // PATCH_PX
_COUNTS = [len(values) for values in FACTORS.values()]
_OUTLINE_WEIGHT, _FACTOR_WEIGHT = 2.0, 0.3


class Answers(NamedTuple):
    """What a learner says of B pictures and M captions, as logits in float32.

    Attributes:
        captions: (B, M), cosines times the learned scale.
        factors: (B, values of all factors).
        outline: (B, patches, cells), whether the object covers any of a cell.
    """

    captions: torch.Tensor
    factors: torch.Tensor
    outline: torch.Tensor


class Learner(torch.nn.Module):
    """The CLIP with the two layers that only training needs."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        width = clip.config.vision_config.hidden_size
        self.clip = clip
        self.factors = torch.nn.Linear(width, sum(_COUNTS))
        self.outline = torch.nn.Linear(width, _CELLS**2)

    def forward(self, pixels: torch.Tensor, token_ids: torch.Tensor) -> Answers:
        clip = self.clip
        seen = clip.vision_model(pixel_values=pixels, output_hidden_states=True)
        patches = seen.hidden_states[_OUTLINE_LAYER][:, 1:]
        images = clip.visual_projection(seen.pooler_output).float()
        texts = clip.text_projection(clip.text_model(input_ids=token_ids).pooler_output).float()
        cosines = normalize(images, dim=-1) @ normalize(texts, dim=-1).T
        return Answers(
            clip.logit_scale.float().exp() * cosines,
            self.factors(seen.pooler_output).float(),
            self.outline(layer_norm(patches, patches.shape[-1:])).float(),
        )


def half_copy(learner: Learner) -> HalfCopy[Learner]:
    """The learner's bfloat16 copy."""
    return HalfCopy(learner, lambda copied: copied.clip.set_attn_implementation("eager"))


def contrastive_loss(logits: torch.Tensor, is_true: torch.Tensor) -> torch.Tensor:
    """Cross-entropy both ways, as CLIP's, where a picture may have several true captions.

    `logits` and `is_true` are (pictures, captions); every row and column of `is_true` holds a True.
    The true ones share a row's, or column's, target equally.
    """
    wanted = is_true.float()
    per_image = cross_entropy(logits, wanted / wanted.sum(1, keepdim=True))
    per_text = cross_entropy(logits.T, (wanted / wanted.sum(0)).T)
    return (per_image + per_text) / 2


def renderer_loss(answers: Answers, scenes: Sequence[Scene]) -> torch.Tensor:
    """How far factors and outlines are from what the renderer knows of the B scenes."""
    device = answers.factors.device
    masks = np.stack([object_mask(scene, _PATCHES * _CELLS) for scene in scenes])
    cells = torch.from_numpy(masks).view(-1, _PATCHES, _CELLS, _PATCHES, _CELLS)
    cells = cells.transpose(2, 3).reshape(len(scenes), _PATCHES**2, _CELLS**2)
    loss = _OUTLINE_WEIGHT * binary_cross_entropy_with_logits(
        answers.outline, cells.to(device, torch.float32)
    )
    per_factor = zip(FACTORS.items(), answers.factors.split(_COUNTS, dim=1), strict=True)
    for (factor, values), logits in per_factor:
        true = torch.tensor([values.index(getattr(scene, factor)) for scene in scenes])
        loss = loss + _FACTOR_WEIGHT * cross_entropy(logits, true.to(device))
    return loss

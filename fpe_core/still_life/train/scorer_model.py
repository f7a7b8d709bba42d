"""The built-in scorer's network, its training batches and its losses.

The scorer is a small CLIP (Radford et al. 2021, arXiv 2103.00020). Each caption in a batch has near
misses: captions with one factor changed.

Captions alone teach colours within minutes, but shapes hardly at all: to see a shape, the network
must first separate the object from its ground, whatever their colours. The renderer knows both. So,
during training, a linear layer predicts the object's outline from the patches halfway up, and
another one predicts the factors at the top. The exported scorer has neither layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    layer_norm,
    normalize,
)
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from fpe_core.still_life.render import object_mask
from fpe_core.still_life.scene import FACTORS, FULL_PHRASINGS, PHRASINGS, Scene, caption
from fpe_core.still_life.train.architecture import IMAGE_SIZE_PX, TEXT_WIDTH, TOKENS
from fpe_core.still_life.train.half_copy import HalfCopy

PATCH_PX = 16
_VISION_WIDTH = 128
_EMBEDDING_WIDTH = 96


def build_scorer(tokenizer: CLIPTokenizer) -> CLIPModel:
    """(B, 3, 128, 128) in -1..1 and (M, up to 32) token ids to embeddings of 96; 1.8 M weights.

    The patches' position embeddings are initialised as sines and cosines of row and column (Beyer
    et al. 2022, arXiv 2205.01580) and trained: CLIP's own initialisation makes them a twentieth of
    a patch's colour.
    """
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 4 * TEXT_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": _VISION_WIDTH,
            "intermediate_size": 4 * _VISION_WIDTH,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE_PX,
            "patch_size": PATCH_PX,
        },
        projection_dim=_EMBEDDING_WIDTH,
    )
    model = CLIPModel(config)
    positions = model.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        positions[1:] = 0.5 * _places(IMAGE_SIZE_PX // PATCH_PX, _VISION_WIDTH)
    return model


def _places(across: int, width: int) -> torch.Tensor:
    """(across squared, width): sines and cosines of each patch's row and column, row by row."""
    frequencies = math.pi * 2.0 ** torch.linspace(-1.0, math.log2(across) - 1.0, width // 4)
    angles = torch.outer((torch.arange(across) + 0.5) / across, frequencies)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves.repeat_interleave(across, 0), waves.repeat(across, 1)
    return torch.cat([rows, columns], dim=1)


def image_preprocessing() -> dict[str, Any]:
    """The content of preprocessor_config.json: images to (3, 128, 128) in -1..1."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE_PX},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


_VARIED = 3
GROUP = 2**_VARIED
"""Scenes in a group: two values of each of three factors, in every combination, so that each scene
has a near miss in every one of them. Shape, the hardest to see, is always one of the three."""

_FULL_PHRASING_RATE = 0.8
_WORDS = list(FACTORS.values())
_SHAPE = list(FACTORS).index("shape")
_OTHERS = [place for place in range(len(FACTORS)) if place != _SHAPE]
_NAMED = np.array([[f"{{{factor}}}" in text for factor in FACTORS] for text in PHRASINGS])
"""(phrasings, factors): which factors a phrasing names."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """B scenes with a caption each.

    Attributes:
        chosen: (B,) int64, numbers of the scenes.
        captions: B texts, the i-th written for the i-th scene.
        is_true: (B, B) bool, whether caption j is true of scene i. The caption of another scene is
            true too if the scenes agree in all factors that it names.
    """

    chosen: NDArray[np.int64]
    captions: list[str]
    is_true: NDArray[np.bool_]


class ScenePool:
    """The training scenes, found by their factors."""

    def __init__(self, scenes: list[Scene]) -> None:
        self._scenes = scenes
        self._values = np.array(
            [[words.index(getattr(s, name)) for name, words in FACTORS.items()] for s in scenes]
        )
        self._by_values: dict[tuple[int, ...], list[int]] = {}
        for number, values in enumerate(self._values.tolist()):
            self._by_values.setdefault(tuple(values), []).append(number)

    def batch(self, groups: int, rng: np.random.Generator) -> Batch:
        """`groups` groups, each about a scene drawn at random: B = groups * GROUP."""
        anchors = rng.integers(len(self._scenes), size=groups)
        chosen = np.array([n for anchor in anchors for n in self._group(int(anchor), rng)])
        # One phrasing per group: near misses differ in the factor's word and in nothing else.
        phrasings = np.repeat([_phrasing(rng) for _ in range(groups)], GROUP)
        pairs = zip(chosen.tolist(), phrasings.tolist(), strict=True)
        captions = [caption(self._scenes[number], phrasing) for number, phrasing in pairs]
        equal = self._values[chosen][:, None] == self._values[chosen][None, :]
        return Batch(chosen, captions, (equal | ~_NAMED[phrasings][None, :]).all(-1))

    def _group(self, anchor: int, rng: np.random.Generator) -> list[int]:
        """The anchor and its variants; any scene stands in for one that the pool lacks."""
        values = self._values[anchor]
        varied = [_SHAPE, *rng.choice(_OTHERS, size=_VARIED - 1, replace=False).tolist()]
        sizes = np.array([len(_WORDS[place]) for place in varied])
        other = (values[varied] + rng.integers(1, sizes)) % sizes
        group = [anchor]
        for changed in list(itertools.product((False, True), repeat=_VARIED))[1:]:
            variant = values.copy()
            variant[varied] = np.where(changed, other, values[varied])
            matching = self._by_values.get(tuple(variant.tolist()), range(len(self._scenes)))
            group.append(matching[int(rng.integers(len(matching)))])
        return group


def _phrasing(rng: np.random.Generator) -> int:
    """A random phrasing, mostly one that names every factor."""
    full = rng.random() < _FULL_PHRASING_RATE
    return int(rng.integers(*((0, FULL_PHRASINGS) if full else (FULL_PHRASINGS, len(PHRASINGS)))))


_OUTLINE_LAYER = 3
_CELLS = 4  # of the outline, along a patch's edge
_PATCHES = IMAGE_SIZE_PX // PATCH_PX
_COUNTS = [len(values) for values in FACTORS.values()]
_OUTLINE_WEIGHT, _FACTOR_WEIGHT = 2.0, 0.3


class Answers(NamedTuple):
    """A learner's outputs for B images and M captions, as logits in float32.

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
    """CLIP's cross-entropy in both directions, for images that may have several true captions.

    `logits` and `is_true` are (images, captions); every row and column of `is_true` holds a True.
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

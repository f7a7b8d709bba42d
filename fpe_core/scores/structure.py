"""How much of a source's layout an edit keeps, by the self-similarity of a ViT's keys.

    model = load_structure_model("facebook/dino-vitb8")
    structure_distance(model.self_similarities(sources), model.self_similarities(edits))

Splice (Tumanyan et al., CVPR 2022, arXiv 2201.00424, equation 4) found that the cosines between the
keys of a DINO-ViT's last layer describe the layout of an image and little of its appearance:

    S_ij = cos(k_i, k_j),  k_i the key of token i, all heads concatenated, including [CLS]

"Structure distance" of PnP-Inversion (Ju et al., ICLR 2024, arXiv 2310.01506) is the mean squared
difference of two such matrices. As in their evaluation code: DINO ViT-B/8, layer 11 counted from 0
(the last), the shorter side at 224 px and the longer at most 480, every entry of S, including the
[CLS] token's. Their tables multiply it by 1000; here it is not scaled.

`load_structure_model` accepts the same three kinds of source as `load_scorer`:

    builtin:still-life      a stand-in, not a DINO: the vision tower of the built-in CLIP
    a folder, owner/name    a ViT (DINO's are), DINOv2 with or without registers, DINOv3, CLIP

Distances by different models cannot be compared. DINOv3's keys are taken before their rotation.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpe_core.checkpoint.files import BUILTIN_STILL_LIFE
from fpe_core.checkpoint.pretrained import ANYTHING, load_network
from fpe_core.device import choose_device
from fpe_core.errors import ParameterError
from fpe_core.scores.check import STRUCTURE_KINDS, check_structure, image_preparation
from fpe_core.scores.files import locate_scorer
from fpe_core.scores.images import Images, batches_by_size, image_rows

_LONGEST = 480 / 224
"""Longer side over the size of the shorter one, at most (PnP-Inversion)."""

_KEY_PROJECTIONS = ("k_proj", "key")  # transformers 5 and CLIP; ViT and DINOv2 in transformers 4


@dataclass(frozen=True)
class StructureModel:
    """A loaded ViT, ready to measure structure.

    Attributes:
        name: the source it was loaded from, as given.
        model: transformers' own object, in eval mode and float32.
        size_px: the shorter side of resized images (from the checkpoint's preprocessing).
        patch_px: side of a patch; resized sides are multiples of it.
        mean, std: per channel, subtracted from and divided into values of 0..1.
        device: where the model runs. Results are returned on the CPU.
    """

    name: str
    model: Any
    size_px: int
    patch_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device

    def self_similarities(self, images: Images) -> list[Tensor]:
        """The matrix S of each image: (T, T), float32, -1..1, symmetric. T is the number of its
        patches plus one, and plus the number of registers for DINOv2 and DINOv3 with registers.

        Images are a float tensor (N, 3, H, W) in 0..1 or N PIL images. Proportions are kept and
        nothing is cropped, even if the checkpoint's preprocessing crops. Position embeddings are
        interpolated to the size.

        Raises:
            ParameterError: any other images.
        """
        fitted = [self._fit(row) for row in image_rows(images)]
        found: dict[int, Tensor] = {}
        with torch.inference_mode():
            for numbers, (batch,) in batches_by_size(fitted):
                keys = torch.nn.functional.normalize(self._keys(batch).float(), dim=-1)
                found.update(zip(numbers, (keys @ keys.mT).cpu().unbind(), strict=True))
        return [found[number] for number in range(len(fitted))]

    def _fit(self, image: Tensor) -> Tensor:
        """(3, H, W) at the model's size, not yet normalised."""
        height, width = image.shape[1:]
        scale = self.size_px / min(height, width)
        scale = min(scale, self.size_px * _LONGEST / max(height, width))
        size = [
            max(1, round(side * scale / self.patch_px)) * self.patch_px for side in (height, width)
        ]
        if size == [height, width]:
            return image
        resized = torch.nn.functional.interpolate(
            image[None], size, mode="bilinear", antialias=True, align_corners=False
        )
        return resized[0].clamp(0.0, 1.0)

    def _keys(self, batch: Tensor) -> Tensor:
        """(n, 3, H, W) in 0..1 to the last layer's keys, (n, T, D), all heads concatenated."""
        pixels = batch.to(self.device)
        mean, std = (pixels.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        caught: list[Tensor] = []
        projection = _last_key_projection(self.model)
        handle = projection.register_forward_hook(lambda _, __, keys: caught.append(keys))
        try:
            self.model(pixel_values=(pixels - mean) / std, **_interpolation(self.model))
        finally:
            handle.remove()
        return caught[0]


def structure_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[float]:
    """Mean squared difference of self-similarities, 0..4, pair by pair: 0 = same layout.

    Both are results of `StructureModel.self_similarities` of the same model.

    Raises:
        ParameterError: different numbers of matrices, or different sizes.
    """
    shapes = [[tuple(each.shape) for each in side] for side in (first, second)]
    if shapes[0] != shapes[1]:
        raise ParameterError(
            "structure_distance compares pair by pair, but got self-similarities of shapes "
            f"{shapes[0]} and {shapes[1]}; sources and edits need the same size and model"
        )
    return [float(((a - b).double() ** 2).mean()) for a, b in zip(first, second, strict=True)]


def _last_key_projection(model: Any) -> Any:
    """The module that makes the keys of the last layer: (n, T, width) to (n, T, width)."""
    found = [
        module for name, module in model.named_modules() if name.split(".")[-1] in _KEY_PROJECTIONS
    ]
    return found[-1]


def _interpolation(model: Any) -> dict[str, bool]:
    """DINO and CLIP interpolate their position embeddings when asked, DINOv2 and DINOv3 always."""
    asks = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if asks else {}


# --- loading --------------------------------------------------------------------------------------


def load_structure_model(
    source: str | Path = BUILTIN_STILL_LIFE,
    *,
    device: str | torch.device = "auto",
    revision: str | None = None,
) -> StructureModel:
    """Loads a ViT to measure structure with.

    Args:
        source: see the module.
        device: "auto" takes CUDA, then MPS, then the CPU.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: the source is not a supported ViT, or cannot be read.
    """
    torch_device = choose_device(device)
    folder = locate_scorer(source, revision, "a ViT, DINOv2, DINOv3 or CLIP")
    kind = check_structure(folder)
    model = _load(folder, kind)
    model.requires_grad_(False).eval().to(torch_device)
    size_px, mean, std = image_preparation(folder)
    return StructureModel(
        str(source), model, size_px, int(model.config.patch_size), mean, std, torch_device
    )


def _load(folder: Path, kind: str) -> Any:
    import transformers

    name, settings = STRUCTURE_KINDS[kind]
    model = load_network(
        getattr(transformers, name),
        folder,
        f"structure model {folder}",
        torch.float32,
        ANYTHING,
        use_safetensors=True,
        **settings,
    )
    return model.vision_model if kind == "clip" else model

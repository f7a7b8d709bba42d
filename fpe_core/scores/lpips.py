"""LPIPS: how different an edit looks from its source, by the features of an image classifier.

    model = load_lpips("alexnet.safetensors", net="alex")     # or "vgg", with VGG16's weights
    lpips(model, sources, edits)

Zhang et al., CVPR 2018, arXiv 1801.03924, equation 1, version 0.1 of their linear weights. Those
come with torchmetrics. The classifier's weights do not: the user provides them as safetensors,
trained on ImageNet, with the names of torchvision's AlexNet or VGG16 (`features.0.weight`, ...;
other names are ignored). torchvision itself is not needed. There is no built-in substitute: the
linear weights are meaningless for the features of another network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fpe_core.device import choose_device
from fpe_core.errors import CheckpointError, ParameterError
from fpe_core.scores.edit_scores import LEAST_PX
from fpe_core.scores.files import locate_lpips
from fpe_core.scores.images import Images, score_pairs

LpipsNet = Literal["alex", "vgg"]

LPIPS_LEAST_PX = LEAST_PX["lpips"]
"""Least side of an image: below, AlexNet's poolings leave nothing."""
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-8


@dataclass(frozen=True)
class LpipsModel:
    """A classifier's convolutions with LPIPS' linear weights, ready to compare.

    Attributes:
        name: where the classifier's weights were loaded from, as given.
        net: "alex" or "vgg"; their distances cannot be compared.
        stages: the five parts of the classifier after each of which features are compared.
        linear: per stage the weights of its channels, (C,), none negative.
        device: where the model runs.
    """

    name: str
    net: LpipsNet
    stages: tuple[nn.Sequential, ...]
    linear: tuple[Tensor, ...]
    device: torch.device


def lpips(model: LpipsModel, sources: Images, edits: Images) -> list[float]:
    """LPIPS of each source and its edit: 0 for equal images, higher = less alike, seldom above 1.

    Sources and edits are floats (N, 3, H, W) in 0..1 or N PIL images (see `images`), at least 32
    px, compared at the size they have.

    Raises:
        ParameterError: any other images, or a source and its edit of different sizes.
    """

    def score(before: Tensor, after: Tensor) -> list[float]:
        distance = torch.zeros(len(before))
        first, second = _scaled(before.to(model.device)), _scaled(after.to(model.device))
        for stage, linear in zip(model.stages, model.linear, strict=True):
            first, second = stage(first), stage(second)
            difference = (_unit(first) - _unit(second)) ** 2
            distance += torch.einsum("nchw,c->nhw", difference, linear).mean(dim=(1, 2)).cpu()
        return distance.tolist()

    return score_pairs("lpips", sources, edits, score, least_px=LPIPS_LEAST_PX)


def load_lpips(
    weights: str | Path,
    *,
    net: LpipsNet = "alex",
    device: str | torch.device = "auto",
    revision: str | None = None,
) -> LpipsModel:
    """Loads LPIPS on a classifier's weights.

    Args:
        weights: a .safetensors file, or a hub id (owner/name) of a repository with
            model.safetensors.
        net: the classifier they belong to: "alex" (AlexNet, which the authors recommend for
            measuring) or "vgg" (VGG16).
        device: "auto" takes CUDA, then MPS, then the CPU.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: no such file, or not the weights of that classifier.
        ParameterError: an unknown net.
    """
    if net not in _STAGES:
        raise ParameterError(f"net must be one of {', '.join(_STAGES)}, got {net!r}")
    torch_device = choose_device(device)
    layers = _STAGES[net]()
    stages = tuple(nn.Sequential(*layers[a:b]) for a, b in pairwise(_BOUNDS[net]))
    _fill(nn.Sequential(*layers), _read(locate_lpips(weights, revision)), str(weights), net)
    for stage in stages:
        stage.requires_grad_(False).eval().to(torch_device)
    linear = tuple(each.to(torch_device) for each in _linear_weights(net, len(stages)))
    return LpipsModel(str(weights), net, stages, linear, torch_device)


def _scaled(images: Tensor) -> Tensor:
    """0..1 to what the classifier was trained on, in LPIPS' own numbers for -1..1."""
    shift, scale = (images.new_tensor(each)[:, None, None] for each in (_SHIFT, _SCALE))
    return (2 * images - 1 - shift) / scale


def _unit(features: Tensor) -> Tensor:
    """Unit length along the channels, at every place."""
    return features / (_EPSILON + features.square().sum(dim=1, keepdim=True)).sqrt()


# --- loading --------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # truncated, or something else under that name
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _fill(features: nn.Sequential, found: dict[str, Tensor], source: str, net: str) -> None:
    wanted = features.state_dict()
    missing = [
        name
        for name, weight in wanted.items()
        if f"features.{name}" not in found or found[f"features.{name}"].shape != weight.shape
    ]
    if missing:
        raise CheckpointError(
            f"{source} does not hold the classifier of net={net!r}: features.{missing[0]} is "
            f"missing, or not of shape {tuple(wanted[missing[0]].shape)}"
        )
    features.load_state_dict({name: found[f"features.{name}"].float() for name in wanted})


def _linear_weights(net: str, stages: int) -> list[Tensor]:
    """The authors' weights, in torchmetrics' package: one vector of channels per stage."""
    folder = resources.files("torchmetrics.functional.image") / "lpips_models"
    with resources.as_file(folder / f"{net}.pth") as path:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    return [stored[f"lin{n}.model.1.weight"].float().reshape(-1) for n in range(stages)]


def _alexnet() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    ]


def _vgg16() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for block, (width, convolutions) in enumerate(
        [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
    ):
        if block:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return layers


_STAGES: dict[str, Callable[[], list[nn.Module]]] = {"alex": _alexnet, "vgg": _vgg16}
_BOUNDS: dict[str, Sequence[int]] = {"alex": (0, 2, 5, 8, 10, 12), "vgg": (0, 4, 9, 16, 23, 30)}
"""Layers of the classifier between which its stages are cut: each ends after a ReLU."""

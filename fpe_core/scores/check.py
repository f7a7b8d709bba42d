"""Whether a folder can be scored with, by its configs and the headers of its weights.

A job is planned with this: it needs no torch and reads no weight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.layout import clip_weights
from fpe_core.checkpoint.weights import compared, headers_of, refuse
from fpe_core.errors import CheckpointError

POSITION_IDS = (r"embeddings\.position_ids$",)
"""Not weights, but older files of CLIP have them."""
STRUCTURE_KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "vit": ("ViTModel", {"add_pooling_layer": False}),
    "dinov2": ("Dinov2Model", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {}),
    "dinov3_vit": ("DINOv3ViTModel", {}),
    "clip": ("CLIPModel", {}),
    "clip_vision_model": ("CLIPVisionModel", {}),
}
"""What a structure model may be: its model_type, the class and how it is loaded."""
_IMAGE_SETTINGS = "preprocessor_config.json"


def check_clip(folder: Path) -> None:
    """Raises CheckpointError unless a folder has a whole CLIPModel, its tokenizer and the settings
    of its images."""
    kind = _model_type_of(folder, "CLIP")
    if kind != "clip":
        raise CheckpointError(
            f"{folder} is not a CLIP: its model_type is {kind!r}. A scorer needs a whole CLIPModel "
            "('clip'): images and texts in one space"
        )
    image_settings(folder)
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        raise CheckpointError(
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt"
        )
    held = headers_of(_weights_of(folder))
    expected = clip_weights(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    refuse(f"scorer {folder}", "CLIPModel", compared(held, expected, POSITION_IDS))


def check_structure(folder: Path) -> str:
    """The model_type of a folder with a vision transformer, weights and the settings of its images.

    Raises:
        CheckpointError: it is something else.
    """
    kind = _model_type_of(folder, "vision transformer")
    image_preparation(folder)
    headers_of(_weights_of(folder))
    if kind not in STRUCTURE_KINDS:
        raise CheckpointError(
            f"{folder} is not a supported vision transformer: its model_type is {kind!r}; allowed: "
            f"{', '.join(STRUCTURE_KINDS)}"
        )
    return kind


def image_settings(folder: Path) -> Mapping[str, Any]:
    """How a folder's images are prepared: preprocessor_config.json, or that part of
    processor_config.json, where transformers 5 writes it and looks for it first.

    Raises:
        CheckpointError: it has neither, or they cannot be read.
    """
    for name, part in (("processor_config.json", "image_processor"), (_IMAGE_SETTINGS, None)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content if part is None else content.get(part)
            if found is not None:
                return dict(found)
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
    raise CheckpointError(
        f"{folder} has no {_IMAGE_SETTINGS}, which describes how images are prepared"
    )


def image_preparation(
    folder: Path,
) -> tuple[int, tuple[float, float, float], tuple[float, float, float]]:
    """Size, mean and standard deviation of a vision transformer's images, in their old or new form.

    Raises:
        CheckpointError: a folder without them.
    """
    settings = image_settings(folder)
    try:
        cropped = settings.get("do_center_crop") and settings.get("crop_size")
        size = cropped or settings["size"]
        if isinstance(size, dict):
            size = size.get("shortest_edge") or min(size["height"], size["width"])
        mean, std = (_three(settings[name]) for name in ("image_mean", "image_std"))
        if int(size) < 1 or min(std) <= 0:
            raise ValueError(f"size {size}, image_std {std}")
        return int(size), mean, std
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the image settings of {folder} have no usable size, image_mean and image_std: "
            f"{type(error).__name__}: {error}"
        ) from error


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _model_type_of(folder: Path, wanted: str) -> str:
    """The `model_type` of a folder's config.json; `wanted`: the model's name, for the error
    message."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a {wanted}: it has no config.json") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} is not a model's config: {error}"
        ) from error
    return str(kind)


def _weights_of(folder: Path) -> list[Path]:
    """The files of weights in safetensors; CheckpointError if there are none."""
    pattern = r"model(-\d+-of-\d+)?\.safetensors"
    found = [path for path in folder.iterdir() if re.fullmatch(pattern, path.name)]
    if not found:
        raise CheckpointError(
            f"{folder} holds no model.safetensors; pickled weights (.bin) can run code and are "
            "not read. On the hub, another revision may have been converted"
        )
    return found

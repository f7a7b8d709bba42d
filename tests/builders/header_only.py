"""Single files of full size that take no room: a safetensors header, and a hole for the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fpe_core.checkpoint.family_facts import Family
from fpe_core.checkpoint.original_layout import (
    autoencoder_in_file,
    text_encoder_in_file,
    text_encoders_of_xl_in_file,
    unet_in_file,
)

Shapes = dict[str, tuple[int, ...]]
_BYTES = 2


def write_header_only(path: Path, shapes: Mapping[str, tuple[int, ...]], **metadata: str) -> Path:
    """A .safetensors file of float16 weights, all zero, as a sparse file."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for name, shape in shapes.items():
        end = place + _BYTES * prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    return path


def shapes_of(family: Family) -> Shapes:
    """The weights of a family's published model, under their names in a single file.

    They are those of the libraries' own modules with the family's configs.
    """
    unet = unet_in_file(_shapes(unet_on_meta(family)), family.unet)
    assert unet is not None
    vae = autoencoder_in_file(_shapes(autoencoder_on_meta(family)), family.vae)
    texts = [
        {name.removeprefix("text_model."): shape for name, shape in _shapes(each).items()}
        for each in text_encoders_on_meta(family)
    ]
    if len(texts) == 2:
        first, second = text_encoders_of_xl_in_file(*texts)
        return {**unet, **vae, **first, **second}
    is_openclip = family.text_encoders[0]["hidden_size"] == 1024
    names = ["cond_stage_model.model.ln_final.weight"] if is_openclip else []
    text = text_encoder_in_file(texts[0], names)
    flat = {k: (*v, 1, 1) if ".attn_1." in k and len(v) == 2 else v for k, v in vae.items()}
    return {**unet, **flat, **text}


def unet_on_meta(family: Family) -> Any:
    kind: Any = UNet2DConditionModel
    with torch.device("meta"):
        return kind.from_config(dict(family.unet))


def autoencoder_on_meta(family: Family) -> Any:
    kind: Any = AutoencoderKL
    with torch.device("meta"):
        return kind.from_config(dict(family.vae))


def text_encoders_on_meta(family: Family) -> list[Any]:
    kinds = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": None}
    kinds["CLIPTextModelWithProjection"] = CLIPTextModelWithProjection
    made = []
    for config in family.text_encoders:
        values = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
        with torch.device("meta"):
            made.append(kinds[config["architectures"][0]](CLIPTextConfig(**values)))
    return made


def _shapes(module: Any) -> Shapes:
    return {name: tuple(each.shape) for name, each in module.state_dict().items()}

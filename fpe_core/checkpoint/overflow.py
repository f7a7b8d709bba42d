"""Which autoencoders overflow in half precision, and so stay in float32."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fpe_core.checkpoint.files import component_folder, index_of
from fpe_core.checkpoint.xl import has_second_parts


def overflows(folder: Path, dtype: torch.dtype) -> bool:
    """Whether the autoencoder of a diffusers folder overflows in this type.

    That of Stable Diffusion XL does in half precision, unless its config says that it was mended
    (`force_upcast` false).
    """
    if not has_second_parts(index_of(folder)):
        return False
    config = json.loads((component_folder(folder, "vae") / "config.json").read_text("utf-8"))
    return config_overflows(config, dtype)


def config_overflows(config_of_vae: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """The same of a config of Stable Diffusion XL's autoencoder."""
    return dtype == torch.float16 and bool(config_of_vae.get("force_upcast", True))

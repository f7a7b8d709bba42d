"""Loads a single file: the original Stable Diffusion layout, which diffusers converts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from fpe_core.checkpoint.config_folder import COMPONENTS, SINGLE_FILE_CONFIG
from fpe_core.checkpoint.files import CheckpointFiles, components_of, index_of
from fpe_core.checkpoint.original_layout import PREFIXES, has_bare_text_encoder
from fpe_core.checkpoint.overflow import overflows
from fpe_core.checkpoint.pretrained import clip_tokenizer, load_tensors, refuse_empty
from fpe_core.checkpoint.single_file import configs_of
from fpe_core.checkpoint.weights import headers_of
from fpe_core.checkpoint.xl import empty_prompt_is_zero
from fpe_core.errors import CheckpointError


def load_single_file(
    files: CheckpointFiles,
    dtype: torch.dtype,
    config: str | Path | None,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """The components of a single file, by name.

    Args:
        given: networks that are taken from elsewhere. Those that the file lacks have no values
            (they are on torch's meta device), but their config.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    path = files.path
    folder = configs_of(path, config, downloads=True)
    names = COMPONENTS if folder is None else components_of(folder)
    is_xl = "text_encoder_2" in names
    kind: Any = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    others = {} if is_xl else {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipe = kind.from_single_file(
            str(path),
            config=str(folder or SINGLE_FILE_CONFIG),
            torch_dtype=dtype,
            local_files_only=folder is not None,
            **others,
            **({} if folder is None else _apart(path, folder, dtype, given)),
        )
    except CheckpointError:
        raise
    except Exception as error:  # what is not in the file, or not on the hub, raises many types
        advice = (
            ""
            if config is not None or folder is not None
            else ". A single file contains neither configs nor a "
            "tokenizer; without network access set model.config to a diffusers folder that has them"
        )
        raise CheckpointError(
            f"single-file checkpoint {path} cannot be loaded with the configs of "
            f"{config or SINGLE_FILE_CONFIG}: {type(error).__name__}: {error}{advice}"
        ) from error
    components = {name: getattr(pipe, name) for name in names}
    for name in {"unet", "vae", "text_encoder", "text_encoder_2"} & components.keys():
        if name not in given:
            refuse_empty(f"single-file checkpoint {path}: its {name}", components[name])
    if folder is not None:
        unet = components["unet"].config
        components["empty_prompt_is_zero"] = empty_prompt_is_zero(index_of(folder), unet)
    return components


def _apart(path: Path, folder: Path, dtype: torch.dtype, given: Collection[str]) -> dict[str, Any]:
    """What diffusers does not load from such a file."""
    components: dict[str, Any] = {
        name: clip_tokenizer(folder / name)
        for name in components_of(folder)
        if name.startswith("tokenizer")
    }
    if path.suffix != ".safetensors":
        return components
    held = headers_of([path])
    if "vae" in given and not any(name.startswith(PREFIXES["vae"]) for name in held):
        components["vae"] = _empty_autoencoder(folder)
    elif "vae" not in given and overflows(folder, dtype):
        components["vae"] = _autoencoder(path, folder)
    if has_bare_text_encoder(held):
        components["text_encoder"] = _bare_text_encoder(path, folder, dtype)
    return components


def _empty_autoencoder(folder: Path) -> Any:
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL
    with torch.device("meta"):
        return kind.from_config(kind.load_config(folder / "vae"))


def _autoencoder(path: Path, folder: Path) -> Any:
    """In float32."""
    from diffusers import AutoencoderKL

    kind: Any = AutoencoderKL
    return kind.from_single_file(
        str(path),
        config=str(folder),
        subfolder="vae",
        torch_dtype=torch.float32,
        local_files_only=True,
    )


def _bare_text_encoder(path: Path, folder: Path, dtype: torch.dtype) -> Any:
    """One whose names lack `text_model.`, as some old files have them."""
    from safetensors import safe_open
    from transformers import CLIPTextModel

    start = PREFIXES["text_encoder"][0]
    with safe_open(path, framework="pt") as opened:
        names = [name for name in opened.keys() if name.startswith(start)]  # noqa: SIM118
        tensors = {name.removeprefix(start): opened.get_tensor(name) for name in names}
    what = f"single-file checkpoint {path}: its text encoder"
    return load_tensors(CLIPTextModel, folder / "text_encoder", tensors, what, dtype)

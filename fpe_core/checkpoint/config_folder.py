"""The configs and the tokenizer of a single file that a user or the hub's client has."""

from __future__ import annotations

from pathlib import Path

from fpe_core.checkpoint.xl import SECOND_PARTS
from fpe_core.errors import CheckpointError

DEFAULTS_FILE = "fpe_defaults.json"
SINGLE_FILE_CONFIG = "stable-diffusion-v1-5/stable-diffusion-v1-5"
"""Source of configs and tokenizer for single files, which contain neither."""
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""What every diffusers folder has; Stable Diffusion XL's has more (`components_of`)."""


def config_folder(config: str | Path | None) -> Path | None:
    """The folder with the configs and the tokenizer of a single file.

    None: Stable Diffusion 1.5's, from the hub; None is returned unless they are on this machine.

    Raises:
        CheckpointError: neither a folder nor a repository that is available.
    """
    if config is not None and Path(config).is_dir():
        return Path(config)
    from huggingface_hub import snapshot_download

    name = str(config or SINGLE_FILE_CONFIG)
    patterns = ["model_index.json", DEFAULTS_FILE, "vocab.json", "merges.txt"]
    components = (*COMPONENTS, *SECOND_PARTS)
    patterns += [f"{component}/*{end}" for component in components for end in (".json", ".txt")]
    try:
        folder = snapshot_download(
            name,
            allow_patterns=patterns,
            local_files_only=config is None,
        )
    except Exception as error:  # the hub's client raises from several libraries
        if config is None:
            return None
        raise CheckpointError(
            f"model.config: {name!r} is not a folder, and could not be downloaded from the Hugging "
            f"Face hub: {type(error).__name__}: {error}"
        ) from error
    is_whole = all((Path(folder) / component).is_dir() for component in COMPONENTS)
    return Path(folder) if is_whole or config is not None else None

"""Loads an autoencoder of one's own in the place of a checkpoint's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.pretrained import load_network, refuse_empty
from fpe_core.checkpoint.tensor_files import header_of, tensors_of
from fpe_core.checkpoint.vae_files import (
    check_vae_config,
    names_in_files,
    refuse_other_weights,
    vae_config,
)
from fpe_core.errors import CheckpointError

_log = logging.getLogger(__name__)


def load_vae(vae: Path, weights: Path, own: Any, unet: Any) -> Any:
    """The AutoencoderKL of a folder or a single file, in the type of the checkpoint's own.

    Args:
        vae, weights: the folder or the file, and the file with its weights.
        own: the checkpoint's own autoencoder; a single file has its config.
        unet: the checkpoint's UNet.

    Raises:
        CheckpointError: it cannot be loaded, does not fit the UNet, or is not whole.
    """
    from diffusers import AutoencoderKL

    dtype = own.dtype
    config = vae_config(vae, dict(own.config))
    check_vae_config(vae, config, dict(own.config), dict(unet.config))
    if vae.is_dir():
        options: dict[str, Any] = {"use_safetensors": weights.suffix == ".safetensors"}
        if ".fp16" in weights.name:
            options["variant"] = "fp16"
        found = load_network(AutoencoderKL, vae, f"autoencoder {vae}", dtype, **options)
    else:
        kind: Any = AutoencoderKL
        found = _filled(kind.from_config(own.config), weights).to(dtype)
    factor, usual = float(found.config.scaling_factor), float(own.config.scaling_factor)
    if factor != usual:
        _log.warning(
            "autoencoder %s scales latents by %g, the checkpoint's own by %g: it may be for "
            "another family of models",
            vae,
            factor,
            usual,
        )
    return found


def _filled(network: Any, weights: Path) -> Any:
    """An autoencoder with the weights of a single file."""
    tensors = tensors_of(weights, "autoencoder")
    expected = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    config = dict(network.config)
    held = {name: header_of(each) for name, each in tensors.items()}
    refuse_other_weights(weights, held, expected, config)
    modern = names_in_files(expected, config)
    state = {
        modern[name]: each.reshape(expected[modern[name]])
        for name, each in tensors.items()
        if name in modern
    }
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"autoencoder {weights} cannot be loaded: {error}") from error
    refuse_empty(f"autoencoder {weights}", network)
    return network

"""Whether a checkpoint's add-ons fit it, by configs and headers: when a job is planned.

The same checks are made again when they are loaded, with the networks themselves, and those of
pickles only then. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fpe_core.checkpoint.add_on_files import vae_weights
from fpe_core.checkpoint.add_ons import AddOns, Embedding, Lora
from fpe_core.checkpoint.check import read_config
from fpe_core.checkpoint.embedding_files import (
    TextEncoderSize,
    check_vectors,
    count_of,
    refuse_known,
    tokens_of,
    vectors_for,
    vocabulary_of,
)
from fpe_core.checkpoint.files import (
    CheckpointFiles,
    component_folder,
    components_of,
)
from fpe_core.checkpoint.layout import (
    projected_text_encoder_weights,
    text_config,
    text_encoder_weights,
    unet_weights,
)
from fpe_core.checkpoint.lora_kinds import unsupported, what_else
from fpe_core.checkpoint.lora_layers import Network, fitted_layers, refuse_unused_weight
from fpe_core.checkpoint.single_file import configs_of
from fpe_core.checkpoint.vae_files import check_vae_config, check_vae_weights, vae_config
from fpe_core.checkpoint.weights import headers_of
from fpe_core.errors import CheckpointError

_TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


def check_add_ons(
    source: str | Path,
    files: CheckpointFiles,
    add_ons: AddOns,
    allow_pickle: bool,
    config: str | Path | None,
) -> None:
    """Refuses add-ons that do not fit a checkpoint.

    Args:
        source: the checkpoint's name, for messages.
        files, allow_pickle, config: as `check_files` takes them.
        add_ons: as `located` returns them.

    Raises:
        CheckpointError: with what does not fit, and what such a file usually is.
    """
    if not add_ons:
        return
    folder = configs_of(files.path, config)
    networks = {} if folder is None else _networks(folder)
    for lora in add_ons.loras:
        _check_lora(Path(lora.file), lora, networks, source)
    _check_embeddings(add_ons.embeddings, folder)
    if add_ons.vae is not None and folder is not None:
        own = read_config(folder, "vae/config.json")
        vae = Path(add_ons.vae)
        of_vae = vae_config(vae, own)
        check_vae_config(vae, of_vae, own, read_config(folder, "unet/config.json"))
        check_vae_weights(vae_weights(vae, allow_pickle), of_vae)


def _check_lora(
    path: Path, lora: Lora, networks: Mapping[str, Network | None], source: str | Path
) -> None:
    if path.suffix != ".safetensors":
        return
    held = headers_of([path])
    described = {name: each for name, each in networks.items() if each is not None}
    if described and len(described) == len(networks):
        refuse_unused_weight(path, lora, fitted_layers(path, held, described, source))
    elif reason := unsupported(held) or what_else(held):
        raise CheckpointError(f"LoRA {path}: {reason}")


def _check_embeddings(embeddings: tuple[Embedding, ...], folder: Path | None) -> None:
    encoders = {} if folder is None else _sizes(folder)
    known = {name: _vocabulary(folder, _TEXT_ENCODERS[name]) for name in encoders if folder}
    for each in embeddings:
        path = Path(each.file)
        if path.suffix != ".safetensors":
            continue
        held = headers_of([path])
        if not encoders:
            vectors_for(path, held)
            continue
        for encoder, name in check_vectors(path, held, encoders).items():
            tokens = tokens_of(str(each.token), count_of(held[name]))
            refuse_known(path, tokens, known[encoder])
            known[encoder].update(tokens)


def _networks(folder: Path) -> dict[str, Network | None]:
    """The networks of a diffusers folder by name; None: its weights are not described here."""
    unet = read_config(folder, "unet/config.json")
    weights = unet_weights(unet)
    found: dict[str, Network | None] = {"unet": None if weights is None else Network(weights, unet)}
    for name in _text_encoders(folder):
        config = read_config(folder, f"{name}/config.json")
        is_second = name == "text_encoder_2"
        weights_of = projected_text_encoder_weights if is_second else text_encoder_weights
        found[name] = Network(weights_of(config), config)
    return found


def _sizes(folder: Path) -> dict[str, TextEncoderSize]:
    configs = {
        name: text_config(read_config(folder, f"{name}/config.json"))
        for name in _text_encoders(folder)
    }
    return {
        name: TextEncoderSize(
            int(each.get("hidden_size", 512)), int(each.get("max_position_embeddings", 77))
        )
        for name, each in configs.items()
    }


def _text_encoders(folder: Path) -> list[str]:
    return [name for name in components_of(folder) if name in _TEXT_ENCODERS]


def _vocabulary(folder: Path, tokenizer: str) -> set[str]:
    try:
        return vocabulary_of(component_folder(folder, tokenizer))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {folder} cannot be loaded: {tokenizer}: {type(error).__name__}: {error}"
        ) from error

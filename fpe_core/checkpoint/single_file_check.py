"""Whether a single file is whole, by its header. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fpe_core.checkpoint.layout import Shapes
from fpe_core.checkpoint.original_layout import (
    EMA_PREFIX,
    PREFIXES,
    autoencoder_in_file,
    is_xl_file,
    prefixes_of,
    text_encoder_in_file,
    text_encoders_of_xl_in_file,
    unet_in_file,
)
from fpe_core.checkpoint.weights import Header, compared, headers_of, refuse, usual_kind
from fpe_core.errors import CheckpointError

WHAT = {
    "unet": "UNet",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}
_UNREAD: Mapping[str, tuple[str, ...]] = {
    "vae": (r"^first_stage_model\.(loss|model_ema)\.",),
    "text_encoder": (
        r"^cond_stage_model\.(model|transformer)\.(attn_mask|visual|text_projection|logit_scale)",
        r"^conditioner\.embedders\.0\.transformer\.text_model\.embeddings\.position_ids$",
    ),
    "text_encoder_2": (r"^conditioner\.embedders\.1\.model\.(attn_mask|visual|logit_scale)",),
}
"""Names that no network has, but that are saved next to them: what an autoencoder was trained with,
the rest of a CLIP."""


class NetworkInFile(NamedTuple):
    """What is expected of a network: its class, its weights under diffusers' names (None: not
    described here), its config, and patterns of names that may be there besides."""

    kind: str
    weights: Shapes | None
    config: Mapping[str, Any]
    unread: tuple[str, ...]


def check_single_file(
    path: Path,
    networks: Mapping[str, NetworkInFile] | None,
    config: str | Path | None,
    given: Collection[str] = (),
) -> None:
    """Refuses a .safetensors file in the original layout that lacks weights, or holds others.

    Copies of the UNet's weights (`model_ema.`, their average over the training) may lie beside
    them, and are not used.

    Args:
        networks: by name; None: only whether they are there.
        config: what the user has given for the configs, for messages.
        given: networks that are taken from elsewhere; the file may lack them.

    Raises:
        CheckpointError: with the names of the weights, and what such a file usually is.
    """
    held = headers_of([path])
    starts = prefixes_of(held)
    found = {
        name
        for name, prefixes in starts.items()
        if any(weight.startswith(prefixes) for weight in held)
    }
    for name, prefixes in starts.items():
        if name not in found and name not in given:
            raise CheckpointError(
                f"checkpoint file {path} holds no {WHAT[name]}: none of its {len(held)} weights "
                f"has a name like {' or '.join(f'{each}*' for each in prefixes)}. "
                f"{_only_average(held) or usual_kind(held) or _incomplete(held)}"
            )
    for name, network in (networks or {}).items():
        expected = _in_file(name, network, held)
        if expected is None or name not in found:
            continue
        own = {k: _flat(k, each) for k, each in held.items() if k.startswith(starts[name])}
        refuse(
            f"checkpoint file {path}: its {WHAT[name]}, {_with_config(config)},",
            network.kind,
            compared(own, expected, (*network.unread, *_UNREAD.get(name, ()))),
            _remedy(name, config),
        )


def _in_file(
    name: str, network: NetworkInFile, held: Mapping[str, Header]
) -> dict[str, tuple[int, ...]] | None:
    """The weights of a network under their names in a file; None: not described here."""
    if network.weights is None:
        return None
    if name == "unet":
        return unet_in_file(network.weights, network.config)
    if name == "vae":
        return autoencoder_in_file(network.weights, network.config)
    if is_xl_file(held):
        is_first = name == "text_encoder"
        both = (network.weights, {}) if is_first else ({}, network.weights)
        return text_encoders_of_xl_in_file(*both)[0 if is_first else 1]
    return text_encoder_in_file(network.weights, held)


def _flat(name: str, header: Header) -> Header:
    """The autoencoder's attention was saved as 1 x 1 convolutions, and is loaded as matrices."""
    is_square = ".attn_1." in name and header.shape[2:] == (1, 1)
    return header._replace(shape=header.shape[:2]) if is_square else header


def _with_config(config: str | Path | None) -> str:
    return "as its family has it" if config is None else f"with the config of {config}"


def _remedy(name: str, config: str | Path | None) -> str:
    if config is not None:
        return "The config is of another model; set model.config to that of this file's model"
    if name == "vae":
        return (
            "The autoencoder may be another family's; save the file with the one that its model "
            "was trained with"
        )
    return (
        "The file is not whole, or is a variant of its family; then set model.config to the "
        "diffusers folder of its model"
    )


def _only_average(held: Collection[str]) -> str:
    has_unet = any(name.startswith(PREFIXES["unet"]) for name in held)
    if has_unet or not any(name.startswith(EMA_PREFIX) for name in held):
        return ""
    return (
        "It holds the average of the UNet's weights (EMA) only; give the file that has the weights "
        "under their own names, as files that are made for use have them"
    )


def _incomplete(held: Mapping[str, Header]) -> str:
    """What a file without one of the networks usually is."""
    if any(name.startswith(("down_blocks.", "conv_in.", "mid_block.")) for name in held):
        return (
            "It looks like a UNet alone, which belongs into the folder unet of a diffusers folder"
        )
    if any(name.startswith(("encoder.", "decoder.")) for name in held):
        return "It looks like an autoencoder alone"
    found = [
        name for name, prefixes in PREFIXES.items() if any(k.startswith(prefixes) for k in held)
    ]
    if found:
        return (
            f"It holds {' and '.join(WHAT[name] for name in found)} only: it was saved without "
            "the rest, which its user is meant to add; save the model whole"
        )
    return "It looks like a model of another kind"

"""What a checkpoint is, and what the editors do with it, without reading a weight.

    found = inspect_checkpoint("builtin:still-life")
    found.family, found.layers, found.editors

Everything comes from the configs and the headers of the weights, but the fingerprint, for which the
files are read once. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.check import check_files, read_config
from fpe_core.checkpoint.editor_uses import EditorUse, editor_uses
from fpe_core.checkpoint.files import (
    CheckpointFiles,
    component_folder,
    default_parameters_of,
    fingerprint_of,
    locate,
    sees_source,
    weights_files,
)
from fpe_core.checkpoint.layout import text_config
from fpe_core.checkpoint.original_layout import prefixes_of
from fpe_core.checkpoint.single_file import configs_of
from fpe_core.checkpoint.unet_layers import UNetLayer, unet_layers
from fpe_core.checkpoint.weights import Header, headers_of
from fpe_core.errors import CheckpointError, ParameterError
from fpe_core.noise_levels import is_trailing, prediction_type_of, training_levels
from fpe_core.parameters import EditParameters
from fpe_core.unet.family import is_told_sizes
from fpe_core.unet.row_memory import row_bytes

DTYPES: Mapping[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""What networks run in, and the bytes of a number."""
_STORED = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_PUBLISHED_WIDTHS = {768: "1.x", 1024: "2.x", 2048: "XL"}


@dataclass(frozen=True)
class Network:
    """One network: how many parameters its files hold, and in which types; None for pickles."""

    name: str
    parameters: int | None
    stored_as: tuple[str, ...]


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder: the width of its outputs, which is that of an embedding's vectors for it,
    its layers that are used, and how many tokens a prompt has."""

    name: str
    width: int
    layers: int
    tokens: int


@dataclass(frozen=True)
class Memory:
    """In one type: bytes of all weights, and of a row of the UNet at its peak (an estimate, the one
    that the row limit starts with)."""

    dtype: str
    weights: int | None
    row: int


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is.

    Attributes:
        name, fingerprint: as in a job's records.
        family: for people.
        prediction_type: "epsilon" or "v_prediction".
        timesteps: of the training.
        spacing: "leading" or "trailing": of the steps.
        reaches_noise: whether the last timestep is pure noise (zero terminal SNR).
        size_px: (width, height) that it recommends.
        width_px, height_px: what tokens, rows and memory are of.
        latent: (channels, height, width) there.
        networks, text_encoders, layers, memory: see their classes.
        editors: what every editor does with it.
        embedding_widths: the vectors of an embedding, by text encoder.
        lora_family: whose LoRAs fit, or why none of the published ones does.
        cross_attention_widths: of the texts that the layers see.
    """

    name: str
    fingerprint: str
    family: str
    prediction_type: str
    timesteps: int
    spacing: str
    reaches_noise: bool
    size_px: tuple[int, int]
    width_px: int
    height_px: int
    latent: tuple[int, int, int]
    networks: tuple[Network, ...]
    text_encoders: tuple[TextEncoder, ...]
    layers: tuple[UNetLayer, ...]
    editors: tuple[EditorUse, ...]
    memory: tuple[Memory, ...]
    embedding_widths: Mapping[str, int]
    lora_family: str
    cross_attention_widths: tuple[int, ...]


def inspect_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    config: str | Path | None = None,
    width_px: int | None = None,
    height_px: int | None = None,
) -> Inspection:
    """Looks at a checkpoint as a job would that is planned.

    Args:
        source, revision, allow_pickle, config: as `load_checkpoint` takes them.
        width_px, height_px: a size of edits; None: the one it recommends.

    Raises:
        CheckpointError: it cannot be edited with.
        ParameterError: a size that no edit can have.
    """
    files = locate(source, allow_pickle, revision)
    check_files(source, files, allow_pickle, config)
    folder = configs_of(files.path, config)
    if folder is None:
        raise CheckpointError(
            f"checkpoint {source}: its configs are not on this machine; name a diffusers folder "
            "that has them (model.config)"
        )
    own = default_parameters_of(files, config)
    parameters = replace(
        own, width_px=width_px or own.width_px, height_px=height_px or own.height_px
    )
    unet, vae = read_config(folder, "unet/config.json"), read_config(folder, "vae/config.json")
    scheduler = read_config(folder, "scheduler/scheduler_config.json")
    latent = _latent(vae, parameters)
    layers = unet_layers(unet, latent[1], latent[2])
    texts = _text_encoders(folder)
    networks = _networks(files, allow_pickle, tuple(each.name for each in texts))
    widths = tuple(dict.fromkeys(layer.text_width for layer in layers))
    levels = training_levels(scheduler)
    return Inspection(
        name=str(source),
        fingerprint=fingerprint_of(files, allow_pickle, config),
        family=_family(unet, vae),
        prediction_type=prediction_type_of(scheduler),
        timesteps=len(levels),
        spacing="trailing" if is_trailing(scheduler) else "leading",
        reaches_noise=bool(levels[-1] == 0),
        size_px=(own.width_px, own.height_px),
        width_px=parameters.width_px,
        height_px=parameters.height_px,
        latent=latent,
        networks=networks,
        text_encoders=texts,
        layers=layers,
        editors=editor_uses(
            parameters,
            layers,
            sees_source=sees_source(folder),
            is_told_sizes=is_told_sizes(unet),
        ),
        memory=_memory(networks, unet, latent),
        embedding_widths={each.name: each.width for each in texts},
        lora_family=_lora_family(unet, widths),
        cross_attention_widths=widths,
    )


def _latent(vae: Mapping[str, Any], parameters: EditParameters) -> tuple[int, int, int]:
    factor = 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
    for name in ("width_px", "height_px"):
        if getattr(parameters, name) % factor:
            raise ParameterError(
                f"{name} must be a multiple of {factor} for this checkpoint, got "
                f"{getattr(parameters, name)}"
            )
    channels = int(vae.get("latent_channels", 4))
    return channels, parameters.height_px // factor, parameters.width_px // factor


def _text_encoders(folder: Path) -> tuple[TextEncoder, ...]:
    found = []
    for name in ("text_encoder", "text_encoder_2"):
        if (component_folder(folder, name) / "config.json").is_file():
            config = text_config(read_config(folder, f"{name}/config.json"))
            found.append(
                TextEncoder(
                    name,
                    int(config.get("hidden_size", 512)),
                    int(config.get("num_hidden_layers", 12)),
                    int(config.get("max_position_embeddings", 77)),
                )
            )
    return tuple(found)


def _networks(
    files: CheckpointFiles, allow_pickle: bool, texts: Sequence[str]
) -> tuple[Network, ...]:
    names = ("unet", "vae", *texts)
    if not files.is_single_file:
        return tuple(
            _network(name, weights_files(files.path, name, allow_pickle)) for name in names
        )
    if files.path.suffix != ".safetensors":
        return tuple(Network(name, None, ()) for name in names)
    held = headers_of([files.path])
    starts = prefixes_of(held)
    return tuple(
        _counted(name, {k: v for k, v in held.items() if k.startswith(starts[name])})
        for name in names
    )


def _network(name: str, paths: Sequence[Path]) -> Network:
    if any(path.suffix != ".safetensors" for path in paths):
        return Network(name, None, ())
    return _counted(name, headers_of(paths))


def _counted(name: str, held: Mapping[str, Header]) -> Network:
    numbers = {key: each for key, each in held.items() if each.dtype in _STORED}
    kinds = dict.fromkeys(_STORED[each.dtype] for each in numbers.values())
    return Network(name, sum(prod(each.shape) for each in numbers.values()), tuple(kinds))


def _memory(
    networks: Sequence[Network], unet: Mapping[str, Any], latent: tuple[int, int, int]
) -> tuple[Memory, ...]:
    counts = [each.parameters for each in networks if each.parameters is not None]
    total = sum(counts) if len(counts) == len(networks) else None
    widest = int(unet.get("block_out_channels", (320,))[0]) * latent[1] * latent[2]
    return tuple(
        Memory(dtype, None if total is None else total * size, row_bytes(widest, size))
        for dtype, size in DTYPES.items()
    )


def _family(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> str:
    kind = "Stable Diffusion 1.x"
    if unet.get("addition_embed_type") is not None:
        kind = "Stable Diffusion XL"
    elif unet.get("use_linear_projection"):
        kind = "Stable Diffusion 2.x"
    reads = unet.get("in_channels", 4) == 2 * vae.get("latent_channels", 4)
    return f"{kind}, InstructPix2Pix" if reads else kind


def _lora_family(unet: Mapping[str, Any], widths: Sequence[int]) -> str:
    first = int(unet.get("block_out_channels", (320,))[0])
    known = _PUBLISHED_WIDTHS.get(widths[0]) if len(widths) == 1 and first == 320 else None
    if known is None:
        return "none of a published family: its networks have other sizes"
    return f"Stable Diffusion {known}"

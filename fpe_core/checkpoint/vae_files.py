"""Whether an autoencoder of one's own fits a checkpoint, by configs and headers.

It is an AutoencoderKL's folder, or a single file, in diffusers' layout or the original one; a
single file has the config of the checkpoint's own autoencoder. Needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.layout import Shapes, autoencoder_weights
from fpe_core.checkpoint.original_layout import PREFIXES, autoencoder_in_file
from fpe_core.checkpoint.weights import Header, compared, headers_of, refuse
from fpe_core.errors import CheckpointError

_PREFIX = PREFIXES["vae"][0]
_OLD_ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value."}
_OLD_OUTPUT = (".to_out.0.", ".proj_attn.")
UNREAD = (rf"^({re.escape(_PREFIX)})?(loss|model_ema)\.",)
"""Names of weights that only the training of an autoencoder needs."""


def vae_config(vae: Path, own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of an autoencoder's folder; of a single file it is the checkpoint's own.

    Raises:
        CheckpointError: it cannot be read.
    """
    if vae.is_file():
        return own
    try:
        content = json.loads((vae / "config.json").read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"autoencoder {vae} cannot be loaded: config.json: {type(error).__name__}: {error}"
        ) from error
    return content


def check_vae_config(
    vae: Path, config: Mapping[str, Any], own: Mapping[str, Any], unet: Mapping[str, Any]
) -> None:
    """Refuses an autoencoder that is of another class or does not fit the UNet.

    Args:
        config: the autoencoder's.
        own: that of the checkpoint's own autoencoder, which it replaces.
        unet: that of the checkpoint's UNet.

    Raises:
        CheckpointError: with all that does not fit.
    """
    kind = config.get("_class_name", "AutoencoderKL")
    problems = [] if kind == "AutoencoderKL" else [f"it is not an AutoencoderKL but an {kind}"]
    latent, wanted = config.get("latent_channels", 4), unet.get("out_channels", 4)
    if latent != wanted:
        problems.append(f"its latents have {latent} channels, those of the UNet {wanted}")
    colours = (config.get("in_channels", 3), config.get("out_channels", 3))
    if colours != (3, 3):
        problems.append(f"it takes {colours[0]} and gives {colours[1]} channels, not 3")
    levels, usual = (len(each.get("block_out_channels", (64,))) for each in (config, own))
    if levels != usual:
        problems.append(
            f"an edge of its latents is {2 ** (levels - 1)} times shorter than the image's, where "
            f"the checkpoint's own has {2 ** (usual - 1)}"
        )
    if config.get("shift_factor") is not None or config.get("latents_mean") is not None:
        problems.append("it shifts its latents, as those of Stable Diffusion 3 and Flux do")
    if config.get("quantization_config") is not None:
        problems.append("it is quantised")
    if problems:
        raise CheckpointError(
            f"autoencoder {vae} does not fit the checkpoint: {'; '.join(problems)}"
        )


def check_vae_weights(weights: Path, config: Mapping[str, Any]) -> None:
    """Refuses a .safetensors file that lacks weights of the autoencoder, or holds others.

    Raises:
        CheckpointError: with their names.
    """
    expected = autoencoder_weights(config)
    if expected is None or weights.suffix != ".safetensors":
        return  # it is checked when it is loaded
    refuse_other_weights(weights, headers_of([weights]), expected, config)


def refuse_other_weights(
    weights: Path, held: Mapping[str, Header], expected: Shapes, config: Mapping[str, Any]
) -> None:
    """The check itself: `held` in any layout, `expected` under diffusers' names."""
    modern = names_in_files(expected, config)
    found = {}
    for name, each in held.items():
        own = modern.get(name, name)
        found[own] = _flat(each, expected.get(own))
    refuse(
        f"autoencoder {weights}",
        "AutoencoderKL",
        compared(found, expected, UNREAD),
        "The file is not whole, or is another model",
    )


def names_in_files(expected: Shapes, config: Mapping[str, Any]) -> dict[str, str]:
    """Every name that a weight of an autoencoder has in a file, to diffusers' own name."""
    found = {}
    originals = autoencoder_in_file(expected, config)
    for name, original in zip(expected, originals, strict=True):
        old = name
        for ours, theirs in (*_OLD_ATTENTION.items(), _OLD_OUTPUT):
            old = old.replace(ours, theirs)
        for spelling in (name, old, original, original.removeprefix(_PREFIX)):
            found[spelling] = name
    return found


def _flat(header: Header, expected: tuple[int, ...] | None) -> Header:
    """The attention was saved as 1 x 1 convolutions, and is loaded as matrices."""
    is_square = expected is not None and len(expected) == 2 and header.shape[2:] == (1, 1)
    return header._replace(shape=header.shape[:2]) if is_square else header

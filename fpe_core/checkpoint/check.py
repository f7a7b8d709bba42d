"""Whether a checkpoint can be edited with, by its configs and the headers of its weights.

A job is planned with this, so no torch is needed and no weight is read. It refuses what would only
fail, or would silently be filled in, when the model is loaded: another family, a schedule that
cannot be run, a network that lacks weights or holds others. Weights in pickles have no header; they
are checked when they are loaded (`fpe_core.checkpoint.pretrained`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.config_folder import COMPONENTS
from fpe_core.checkpoint.files import (
    CheckpointFiles,
    component_folder,
    components_of,
    sees_source,
    weights_files,
)
from fpe_core.checkpoint.layout import (
    Shapes,
    autoencoder_weights,
    projected_text_encoder_weights,
    text_config,
    text_encoder_weights,
    unet_weights,
)
from fpe_core.checkpoint.shards import check_shards
from fpe_core.checkpoint.single_file import configs_of, is_still_on_hub
from fpe_core.checkpoint.single_file_check import NetworkInFile, check_single_file
from fpe_core.checkpoint.weights import compared, headers_of, refuse
from fpe_core.checkpoint.xl import SECOND_PARTS, few_steps, has_second_parts, is_xl
from fpe_core.checkpoint.xl import problems_of as xl_problems
from fpe_core.errors import CheckpointError
from fpe_core.family_limits import require_family
from fpe_core.layer_rules import LayersByRange, require_last
from fpe_core.noise_levels import check_schedule, timesteps_of
from fpe_core.parameters import EditParameters
from fpe_core.text_settings import AS_IT_IS, TextSettings
from fpe_core.unet.family import config_differences, is_told_sizes

CLASSES: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
"""What each component has to be; the first is what it is loaded as."""
_UNREAD: Mapping[str, tuple[str, ...]] = {
    "unet": (),
    "vae": (),
    "text_encoder": (
        r"embeddings\.position_ids$",
        r"(^|\.)text_projection(\.weight)?$",
        r"(^|\.)(logit_scale|visual_projection\.weight)$",
        r"^(vision_model|visual)\.",
    ),
}
"""Names of weights that are none of the network's, but are saved next to them by usual tools: what
a whole CLIP has beyond its text encoder."""
_CLIP_KINDS = ("clip_text_model", "clip")
_OTHER_PARTS = ("transformer", "prior", "text_encoder_3")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""How autoencoders of diffusers before 0.15 have their attention's weights, Stable Diffusion 1.5's
own among them; diffusers renames them when it loads them."""
_INPAINTING = "an inpainting or depth model"
_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
_WHAT = {
    "unet": "UNet",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "tokenizer": "tokenizer",
    "text_encoder_2": "second text encoder",
    "tokenizer_2": "second tokenizer",
}


@dataclass(frozen=True)
class Configs:
    """The configs of a diffusers folder, by component; `index`: its model_index.json;
    `text_encoder_2`: empty if it has none."""

    folder: Path
    index: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    text_encoder_2: Mapping[str, Any]


def check_files(
    source: str | Path,
    files: CheckpointFiles,
    allow_pickle: bool,
    config: str | Path | None,
    given: Collection[str] = (),
) -> None:
    """Refuses a checkpoint that cannot be loaded whole, or is of another family.

    Args:
        source: its name, for messages.
        files, allow_pickle, config: as `load_checkpoint` takes and finds them.
        given: networks that are taken from elsewhere, "vae" for one: a single file may lack them.

    Raises:
        CheckpointError: with what is wrong, and what such a file usually is.
    """
    if files.is_single_file:
        folder = configs_of(files.path, config)
        configs = None if folder is None else _checked_configs(str(config or files.path), folder)
        if files.path.suffix == ".safetensors":
            networks = None if configs is None else _networks_in_file(configs)
            check_single_file(files.path, networks, config, given)
        return
    configs = _checked_configs(str(source), files.path)
    for name, expected in _expected(configs).items():
        paths = weights_files(files.path, name, allow_pickle)
        check_shards(component_folder(files.path, name), paths)
        if expected is not None and all(path.suffix == ".safetensors" for path in paths):
            held = {_modern(name, key): each for key, each in headers_of(paths).items()}
            found = compared(held, expected, unread_weights(files.path, name))
            refuse(
                f"checkpoint {source}: its {_WHAT[name]}",
                CLASSES[name][0],
                found,
                "The files are not whole, or the config is of another model",
            )


def check_steps(files: CheckpointFiles, config: str | Path | None, steps: int) -> None:
    """Raises ParameterError if the checkpoint's schedule cannot be sampled in so many steps."""
    folder = configs_of(files.path, config)
    if folder is not None:
        timesteps_of(read_config(folder, "scheduler/scheduler_config.json"), steps)


def check_parameters(
    files: CheckpointFiles,
    config: str | Path | None,
    parameters: EditParameters,
    text_settings: TextSettings = AS_IT_IS,
) -> None:
    """Raises ParameterError if the edits are for UNets of another kind than the checkpoint's, or
    name layers that it does not have; so of the text encoders' layers."""
    folder = configs_of(files.path, config)
    if folder is not None:
        unet = read_config(folder, "unet/config.json")
        told = is_told_sizes(unet)
        require_family(
            parameters,
            sees_source=sees_source(folder),
            is_told_sizes=told,
            long_prompts=text_settings.long_prompts,
        )
        encoders = [name for name in components_of(folder) if name.startswith("text_encoder")]
        configs = [text_config(read_config(folder, f"{name}/config.json")) for name in encoders]
        text_settings.require_layers(int(each.get("num_hidden_layers", 12)) for each in configs)
        layers, weights = parameters.layers, unet_weights(unet)
        if weights is not None and isinstance(layers, LayersByRange):
            require_last(layers, sum(name.endswith(".attn1.to_q.weight") for name in weights))


def unread_weights(folder: Path, name: str) -> tuple[str, ...]:
    """Patterns of the weights that a component of a diffusers folder may hold in addition."""
    if not name.startswith("text_encoder"):
        return _UNREAD[name]
    unread = _UNREAD["text_encoder"]
    if name == "text_encoder_2":
        unread = tuple(each for each in unread if "text_projection" not in each)
    return (*unread, _later_layers(read_config(folder, f"{name}/config.json")))


def _later_layers(config: Mapping[str, Any]) -> str:
    """A pattern for the text encoder's layers after those that its config has: leaving out the last
    ones ("clip skip") is how some models are meant."""
    first = int(text_config(config).get("num_hidden_layers", 12))
    later = "|".join(str(layer) for layer in range(first, first + 64))
    return rf"(^|\.)(encoder\.layers|transformer\.resblocks)\.({later})\."


def _checked_configs(source: str, folder: Path) -> Configs:
    configs = _read_configs(folder)
    problems = [*_class_problems(configs), *_config_problems(configs)]
    if problems:
        raise CheckpointError(
            f"{source} is not of the Stable Diffusion 1.x, 2.x or XL family: {'; '.join(problems)}"
        )
    with _naming(source):
        if is_xl(configs.index, configs.unet) and (few := few_steps(source, configs.scheduler)):
            raise CheckpointError(few)
        check_schedule(configs.scheduler)
        if is_still_on_hub(folder):
            return configs
        _check_tokenizer(component_folder(folder, "tokenizer"), configs.text_encoder)
        if configs.text_encoder_2:
            _check_tokenizer(component_folder(folder, "tokenizer_2"), configs.text_encoder_2)
    return configs


@contextmanager
def _naming(source: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {source}: {error}") from error


def _read_configs(folder: Path) -> Configs:
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder} is not a diffusers checkpoint: it has no model_index.json. Expected the "
            f"folders {', '.join(COMPONENTS)} next to it."
        )
    index = read_config(folder, "model_index.json")
    return Configs(
        folder,
        index,
        unet=read_config(folder, "unet/config.json"),
        vae=read_config(folder, "vae/config.json"),
        text_encoder=read_config(folder, "text_encoder/config.json"),
        scheduler=read_config(folder, "scheduler/scheduler_config.json"),
        text_encoder_2=(
            read_config(folder, "text_encoder_2/config.json") if has_second_parts(index) else {}
        ),
    )


def read_config(folder: Path, name: str) -> Mapping[str, Any]:
    """The content of "unet/config.json" or another JSON file of a diffusers folder.

    Raises:
        CheckpointError: it cannot be read.
    """
    component, _, rest = name.rpartition("/")
    path = component_folder(folder, component) / rest if component else folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {folder} cannot be loaded: {name}: {type(error).__name__}: {error}"
        ) from error
    return content


# --- the family -----------------------------------------------------------------------------------


def _class_problems(configs: Configs) -> list[str]:
    """Components that are of another class than Stable Diffusion's, by model_index.json and by
    their own configs."""
    problems = []
    for name, allowed in CLASSES.items():
        if name in SECOND_PARTS and not configs.text_encoder_2:
            continue
        entry = configs.index.get(name)
        stated = {entry[1]} if isinstance(entry, list) and len(entry) == 2 else set()
        if name in ("unet", "vae"):
            stated.add(getattr(configs, name).get("_class_name"))
        problems += [
            f"its {_WHAT[name]} is not {_a(allowed[0])} but {_a(str(kind))}"
            for kind in sorted(stated - {None, *allowed})
        ]
    kind = configs.text_encoder.get("model_type")
    if kind is not None and kind not in _CLIP_KINDS and not problems:
        problems.append(f"its text encoder is not a CLIPTextModel: its model_type is {kind!r}")
    problems += [
        f"it has a {name} (Stable Diffusion 3 or later?)"
        for name in _OTHER_PARTS
        if isinstance(configs.index.get(name), list) and configs.index[name][-1] is not None
    ]
    return problems


def _config_problems(configs: Configs) -> list[str]:
    """Networks that do not fit each other, or have options that Stable Diffusion's do not have."""
    unet, vae, text = configs.unet, configs.vae, text_config(configs.text_encoder)
    problems = [
        f"its {_WHAT[name]} is quantised"
        for name in _NETWORKS
        if getattr(configs, name).get("quantization_config") is not None
    ]
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels not in (latent, 2 * latent):
        problems.append(
            f"its UNet takes {channels} channels, but the autoencoder has {latent} "
            f"({_INPAINTING if latent == 4 else 'an autoencoder of another family'}?)"
        )
    elif unet.get("out_channels", 4) != latent:
        problems.append(f"its UNet gives {unet['out_channels']} channels, not {latent}")
    colours = (vae.get("in_channels", 3), vae.get("out_channels", 3))
    if colours != (3, 3):
        problems.append(
            f"its autoencoder takes {colours[0]} and gives {colours[1]} channels, not 3"
        )
    problems += [
        f"its autoencoder shifts latents ({name})"
        for name in ("latents_mean", "latents_std", "shift_factor")
        if vae.get(name)
    ]
    if is_xl(configs.index, unet):
        problems += xl_problems(configs.index, unet, (configs.text_encoder, configs.text_encoder_2))
    if unet.get("class_embed_type") is not None:
        problems.append("its UNet is class-conditional")
    wanted, width = unet.get("cross_attention_dim", 1280), text.get("hidden_size", 512)
    if configs.text_encoder_2:
        width += text_config(configs.text_encoder_2).get("hidden_size", 512)
    if any(each != width for each in (wanted if isinstance(wanted, list) else [wanted])):
        problems.append(f"its UNet attends over width {wanted}, its text encoder gives {width}")
    kinds = [*unet.get("down_block_types", ["CrossAttn"]), *unet.get("up_block_types", ())]
    if not any("Attn" in str(kind) for kind in kinds):
        problems.append("its UNet has no self-attention layers")
    return problems or [f"of its UNet: {each}" for each in config_differences(unet)]


def _a(kind: str) -> str:
    return f"{'an' if kind.startswith('A') else 'a'} {kind}"


# --- the tokenizer --------------------------------------------------------------------------------


def _check_tokenizer(folder: Path, text_encoder: Mapping[str, Any]) -> None:
    """Refuses a tokenizer that is missing, not CLIP's, or has tokens without an embedding."""
    names = {path.name for path in folder.glob("*")}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        raise CheckpointError(
            f"{folder} has no tokenizer of CLIP: neither tokenizer.json nor vocab.json and "
            "merges.txt"
        )
    highest = max((number for number in _token_ids(folder, names)), default=0)
    embedded = int(text_config(text_encoder).get("vocab_size", 49408))
    if highest >= embedded:
        raise CheckpointError(
            f"its tokenizer has tokens up to number {highest}, its text encoder only {embedded} "
            "embeddings: tokens were added, by textual inversion for one, and the text encoder was "
            "not saved with them"
        )


def _token_ids(folder: Path, names: set[str]) -> Iterator[int]:
    if "tokenizer.json" in names:
        content = read_config(folder, "tokenizer.json")
        vocabulary = content.get("model", {}).get("vocab", {})
        yield from vocabulary.values() if isinstance(vocabulary, dict) else ()
        yield from (int(token["id"]) for token in content.get("added_tokens", ()))
    else:
        yield from read_config(folder, "vocab.json").values()
    if "added_tokens.json" in names:
        yield from read_config(folder, "added_tokens.json").values()


# --- the weights ----------------------------------------------------------------------------------


def _expected(configs: Configs) -> dict[str, Shapes | None]:
    second = {}
    if configs.text_encoder_2:
        second["text_encoder_2"] = projected_text_encoder_weights(configs.text_encoder_2)
    return {
        **second,
        "unet": unet_weights(configs.unet),
        "vae": autoencoder_weights(configs.vae),
        "text_encoder": text_encoder_weights(configs.text_encoder),
    }


def _modern(component: str, name: str) -> str:
    """The name that today's class has for a weight."""
    if component.startswith("text_encoder"):
        return name.removeprefix("text_model.")
    if component == "vae" and ".attentions." in name:
        for old, new in _OLD_ATTENTION.items():
            name = name.replace(f".{old}.", f".{new}.")
    return name


def _networks_in_file(configs: Configs) -> dict[str, NetworkInFile]:
    return {
        name: NetworkInFile(
            CLASSES[name][0],
            weights,
            getattr(configs, name),
            unread_weights(configs.folder, name),
        )
        for name, weights in _expected(configs).items()
    }

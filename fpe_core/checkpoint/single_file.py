"""The family of a single file, by its header, and the configs that the file does not contain.

    configs_of(path, config)

is the folder that a checkpoint's configs and tokenizer are in. Of a single file that is

1. `config`, if it names a whole diffusers folder, or such a repository on the hub;
2. Stable Diffusion 1.5's repository, if the hub's client has it and the file is of that family;
3. else a temporary folder: the facts about the family (`fpe_core.checkpoint.family_facts`), and
   over them what `config` has. A tokenizer is no fact: it is taken from `config`, else from Stable
   Diffusion 1.5's repository. All families here have CLIP's.

Needs no torch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fpe_core.checkpoint.config_folder import DEFAULTS_FILE, SINGLE_FILE_CONFIG, config_folder
from fpe_core.checkpoint.family_facts import (
    INSTRUCT_PIX2PIX,
    STABLE_DIFFUSION_1,
    STABLE_DIFFUSION_2,
    STABLE_DIFFUSION_2_BASE,
    STABLE_DIFFUSION_XL,
    ZERO_TERMINAL_SNR,
    Family,
)
from fpe_core.checkpoint.weights import Header, headers_of
from fpe_core.checkpoint.xl import FEW_STEPS, SECOND_PARTS, has_second_parts
from fpe_core.errors import CheckpointError

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TEMPORARY = "fpe-configs-"
_UNET = "model.diffusion_model."
_FIRST_CONVOLUTION = f"{_UNET}input_blocks.0.0.weight"
_OPENCLIP = "cond_stage_model.model."
_XL_FIRST, _XL_SECOND = "conditioner.embedders.0.", "conditioner.embedders.1."
_ANOTHER_TOKENIZER = (
    "set model.config to a folder with CLIP's vocab.json and merges.txt, or a diffusers folder of "
    "any Stable Diffusion"
)


# --- the family -----------------------------------------------------------------------------------


def family_of_file(path: Path, scheduler: Mapping[str, Any] | None = None) -> Family | None:
    """The family of a .safetensors file in the original layout; None: it is of none of them.

    Args:
        scheduler: the config of the scheduler, if the user has given one; Stable Diffusion 2 has
            models of two kinds, whose weights have the same names and shapes.

    Raises:
        CheckpointError: a family that cannot be edited with, or one that is not decided.
    """
    held, told = headers_of([path]), _metadata(path)
    if not any(name.startswith(_UNET) for name in held):
        return None
    channels = held.get(_FIRST_CONVOLUTION, Header((0, 4), "")).shape[1]
    if any(name.startswith((_XL_FIRST, _XL_SECOND)) for name in held):
        return _xl(path, held, told, channels)
    if channels not in (4, 8):
        kind = {9: "an inpainting model", 5: "a depth model"}.get(
            channels, "a model of another kind"
        )
        raise CheckpointError(
            f"checkpoint file {path} is {kind}: its UNet takes {channels} channels, where the "
            "families that can be edited with have 4, or 8 if they read instructions"
        )
    if any(name.startswith(_OPENCLIP) for name in held):
        family = _second(path, held, told, scheduler)
        return family if channels == 4 else _instruct(family)
    return STABLE_DIFFUSION_1 if channels == 4 else INSTRUCT_PIX2PIX


def _instruct(family: Family) -> Family:
    return Family(
        name=f"{family.name}-instruct",
        pipeline=family.pipeline.replace("Pipeline", "InstructPix2PixPipeline"),
        unet={**family.unet, "in_channels": 8},
        vae=family.vae,
        text_encoders=family.text_encoders,
        pads=family.pads,
        scheduler=family.scheduler,
    )


def _second(
    path: Path,
    held: Collection[str],
    told: Mapping[str, str],
    scheduler: Mapping[str, Any] | None,
) -> Family:
    """Stable Diffusion 2, by what it predicts."""
    prediction = _told_prediction(held, told)
    if scheduler is not None:
        prediction = str(scheduler.get("prediction_type") or "epsilon")
    if prediction is None:
        raise CheckpointError(
            f"checkpoint file {path} is of Stable Diffusion 2, and its weights do not say whether "
            "it predicts epsilon (2.0-base, 2.1-base) or v (2.0, 2.1 at 768 px). Set model.config "
            "to a folder that has scheduler/scheduler_config.json with prediction_type, and the "
            "tokenizer: that of the diffusers folder of the same model, for one"
        )
    family = STABLE_DIFFUSION_2_BASE if prediction == "epsilon" else STABLE_DIFFUSION_2
    return _with_markers(family, held, prediction)


def _xl(path: Path, held: Mapping[str, Header], told: Mapping[str, str], channels: int) -> Family:
    reason = ""
    if any(name.startswith(f"{_XL_FIRST}model.") for name in held):
        reason = "the refiner of Stable Diffusion XL, which finishes pictures and is no editor"
    elif channels not in (4, 8):
        kind = "an inpainting model" if channels == 9 else f"a model of {channels} channels"
        reason = f"{kind} of Stable Diffusion XL"
    elif any(name.startswith(("edm_", "denoiser.sigmas")) for name in held):
        reason = (
            "a model of Stable Diffusion XL's shapes that was trained on other noise levels (EDM)"
        )
    elif few := FEW_STEPS.search(told.get("modelspec.title", "") + " " + path.stem):
        reason = (
            f"Stable Diffusion XL distilled to a few steps without guidance, by its name "
            f"({few[0]}), whose inversion does not lead back to a picture"
        )
    if reason:
        raise CheckpointError(
            f"checkpoint file {path} cannot be edited with. It looks like {reason}"
        )
    prediction = _told_prediction(held, told) or "epsilon"
    family = STABLE_DIFFUSION_XL if channels == 4 else _instruct(STABLE_DIFFUSION_XL)
    return _with_markers(family, held, prediction)


def _told_prediction(held: Collection[str], told: Mapping[str, str]) -> str | None:
    """What a file says that it predicts: by a weight that trainers leave as a mark, or in its
    metadata (Stability AI's ModelSpec)."""
    architecture = told.get("modelspec.architecture", "")
    stated = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon"}
    if "v_pred" in held or architecture == "stable-diffusion-v2-768-v":
        return "v_prediction"
    if architecture == "stable-diffusion-v2-512":
        return "epsilon"
    return stated.get(told.get("modelspec.prediction_type", ""))


def _with_markers(family: Family, held: Collection[str], prediction: str) -> Family:
    zero = ZERO_TERMINAL_SNR if "ztsnr" in held else {}
    return family.with_scheduler(prediction_type=prediction, **zero)


def _metadata(path: Path) -> Mapping[str, str]:
    with safe_open(path, framework="np") as opened:
        return opened.metadata() or {}


# --- the configs ----------------------------------------------------------------------------------


def configs_of(path: Path, config: str | Path | None, *, downloads: bool = False) -> Path | None:
    """The folder with a checkpoint's configs and its tokenizer; see the module.

    None: that of a pickled file, or of a file of no known family, that is not on this machine.

    Args:
        path: of the checkpoint on this machine, a diffusers folder or a single file.
        config: as `load_checkpoint` takes it.
        downloads: also from the hub; else the temporary folder may have no tokenizer.

    Raises:
        CheckpointError: `config` is not available, or the file cannot be edited with.
    """
    if not path.is_file():
        return path
    given = config_folder(config)
    family = _family_without_configs(path, config, given)
    if family is None:
        return given
    if config is None and given is not None and family is STABLE_DIFFUSION_1:
        return given
    own = given if config is not None else None
    tokenizer = _tokenizer(own, downloads)
    return _written(family, own, tokenizer)


def facts_used(path: Path, config: str | Path | None) -> str:
    """What stands in a fingerprint for the facts about a family; "" if none are used, and for
    Stable Diffusion 1 without `config`, whose repository has the same."""
    if not path.is_file() or path.suffix != ".safetensors":
        return ""
    given = None if config is None else config_folder(config)
    family = _family_without_configs(path, config, given)
    if family is None or (config is None and family is STABLE_DIFFUSION_1):
        return ""
    return f"facts: {family.name} {json.dumps(family.scheduler, sort_keys=True)}\n"


def is_still_on_hub(folder: Path) -> bool:
    """Whether a folder of `configs_of` lacks the tokenizer, which is downloaded when it loads."""
    return folder.name.startswith(_TEMPORARY) and not (folder / "tokenizer").is_dir()


def _family_without_configs(
    path: Path, config: str | Path | None, given: Path | None
) -> Family | None:
    """The family whose facts a single file needs; None if `config` has all, and for files that are
    checked otherwise."""
    if path.suffix != ".safetensors":
        return None
    if config is not None and given is not None and is_whole(given):
        return None
    scheduler = None
    if config is not None and given is not None:
        scheduler = _json(given / "scheduler" / "scheduler_config.json")
    return family_of_file(path, scheduler)


def is_whole(folder: Path) -> bool:
    """Whether a folder has all that a single file lacks, as a diffusers folder has."""
    if not (folder / "model_index.json").is_file():
        return False
    second = SECOND_PARTS if has_second_parts(_json(folder / "model_index.json") or {}) else ()
    networks = ["unet", "vae", "text_encoder", *(name for name in second if "text" in name)]
    needed = ["scheduler/scheduler_config.json", *(f"{name}/config.json" for name in networks)]
    tokenizers = ["tokenizer", *(name for name in second if "tokenizer" in name)]
    return all((folder / name).is_file() for name in needed) and all(
        (folder / name).is_dir() for name in tokenizers
    )


def _tokenizer(given: Path | None, downloads: bool) -> Path | None:
    if given is not None:
        for folder in (given / "tokenizer", given):
            names = {path.name for path in folder.glob("*")}
            if "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names:
                return folder
        raise CheckpointError(
            f"model.config: {given} has no tokenizer of CLIP, neither in the folder tokenizer nor "
            f"itself: {_ANOTHER_TOKENIZER}"
        )
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            SINGLE_FILE_CONFIG, allow_patterns=["tokenizer/*"], local_files_only=not downloads
        )
    except Exception as error:  # the hub's client raises from several libraries
        if not downloads:
            return None
        raise CheckpointError(
            f"a single file contains no tokenizer, and that of {SINGLE_FILE_CONFIG} could not be "
            f"downloaded from the Hugging Face hub: {type(error).__name__}: {error}. Without "
            f"network access {_ANOTHER_TOKENIZER}"
        ) from error
    folder = Path(found) / "tokenizer"
    return folder if folder.is_dir() else None


def _written(family: Family, given: Path | None, tokenizer: Path | None) -> Path:
    """A diffusers folder without weights: facts about the family, and over them `given`'s."""
    configs: dict[str, Any] = {"model_index.json": family.index()}
    configs["unet/config.json"] = family.unet
    configs["vae/config.json"] = family.vae
    configs["scheduler/scheduler_config.json"] = family.scheduler
    for place, (encoder, pad) in enumerate(zip(family.text_encoders, family.pads, strict=True), 1):
        end = "" if place == 1 else f"_{place}"
        configs[f"text_encoder{end}/config.json"] = encoder
        if tokenizer is not None:
            own = _json(tokenizer / "tokenizer_config.json") or {}
            padding = {} if pad is None else {"pad_token": pad}
            configs[f"tokenizer{end}/tokenizer_config.json"] = {**own, **padding}
    for name in (*configs, DEFAULTS_FILE):
        if given is not None and not name.startswith(("tokenizer", "model_index")):
            found = _json(given / name)
            configs |= {} if found is None else {name: found}
    return _folder_of(json.dumps(configs, sort_keys=True), tokenizer)


def _folder_of(configs: str, tokenizer: Path | None) -> Path:
    state = () if tokenizer is None else tuple(map(_state_of, sorted(tokenizer.glob("*.*"))))
    made = Path(_made(configs, tokenizer, state).name)
    if not made.is_dir():  # a process that was forked from this one has ended, and removed it
        _made.cache_clear()
        made = Path(_made(configs, tokenizer, state).name)
    return made


def _state_of(path: Path) -> tuple[str, int, int]:
    """What changes when a file does."""
    found = path.stat()
    return path.name, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=64)
def _made(
    configs: str, tokenizer: Path | None, state: tuple[tuple[str, int, int], ...]
) -> tempfile.TemporaryDirectory[str]:
    """It is removed when the process ends. `state`: of the tokenizer's files."""
    del state
    made = tempfile.TemporaryDirectory(prefix=_TEMPORARY)
    root = Path(made.name)
    for name, content in json.loads(configs).items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        if tokenizer is not None and path.name == "tokenizer_config.json":
            _copy_tokenizer(tokenizer, path.parent, content.get("pad_token"))
        path.write_text(json.dumps(content), encoding="utf-8")
    return made


def _copy_tokenizer(tokenizer: Path, folder: Path, pad: Any) -> None:
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    special = _json(folder / "special_tokens_map.json")
    if special is not None and pad is not None:
        content = json.dumps({**special, "pad_token": pad})
        (folder / "special_tokens_map.json").write_text(content, encoding="utf-8")


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file.

    Raises:
        CheckpointError: something else.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return content

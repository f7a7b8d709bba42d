"""The files of a checkpoint: where they are, their fingerprint, the parameters they recommend.

No weights are loaded, because planning a job needs only fingerprint and parameters.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.config_folder import COMPONENTS, DEFAULTS_FILE, SINGLE_FILE_CONFIG
from fpe_core.checkpoint.single_file import TOKENIZER_FILES, configs_of, facts_used
from fpe_core.checkpoint.xl import GUIDANCE_SCALE as XL_GUIDANCE_SCALE
from fpe_core.checkpoint.xl import LEVEL as XL_LEVEL
from fpe_core.checkpoint.xl import REFINER, SECOND_PARTS, empty_prompt_is_zero, has_second_parts
from fpe_core.editors.instruct_pix2pix import InstructPix2Pix
from fpe_core.errors import CheckpointError, ParameterError
from fpe_core.layer_rules import LayersByLevel
from fpe_core.parameters import EditParameters
from fpe_core.unet.family import is_told_sizes

BUILTIN_STILL_LIFE = "builtin:still-life"
CHECKPOINT_DIR: Path = Path(__file__).parent.parent / "still_life" / "checkpoint"
"""The built-in model, a diffusers folder; also for `StableDiffusionPipeline.from_pretrained`."""
BUILTIN_INSTRUCT = "builtin:still-life-instruct"
INSTRUCT_DIR: Path = CHECKPOINT_DIR.parent / "instruct"
"""The built-in model with instructions: its UNet. The other components are the first model's."""
_BUILTIN = {BUILTIN_STILL_LIFE: CHECKPOINT_DIR, BUILTIN_INSTRUCT: INSTRUCT_DIR}
_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
PICKLED_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class CheckpointFiles:
    """Where a checkpoint is on this machine: `path` is a diffusers folder or a single file."""

    path: Path

    @property
    def is_single_file(self) -> bool:
        return self.path.is_file()


def checkpoint_defaults(
    source: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    config: str | Path | None = None,
) -> EditParameters:
    """The edit parameters a checkpoint recommends (`fpe_defaults.json`), else the paper's at its
    own size. Those of a single file are in the folder of its `config`. Loads no weights.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    return default_parameters_of(locate(source, allow_pickle, revision), config)


def locate(source: str | Path, allow_pickle: bool, revision: str | None) -> CheckpointFiles:
    """Finds the files of a source (the kinds: see `load_checkpoint`); downloads a hub id.

    Raises:
        CheckpointError: not a checkpoint, a refused pickle, or not available.
    """
    if str(source).startswith("builtin:"):
        return CheckpointFiles(_builtin_folder(str(source)))
    path = Path(source).expanduser()
    if path.is_dir():
        _check_folder(path, allow_pickle)
        return CheckpointFiles(path)
    if path.is_file():
        if path.suffix != ".safetensors" and not (allow_pickle and path.suffix in PICKLED_SUFFIXES):
            hint = (
                " It is a pickle, which can run code when loaded; convert it to safetensors, "
                "or set allow_pickle if you trust it."
                if path.suffix in PICKLED_SUFFIXES
                else ""
            )
            raise CheckpointError(f"checkpoint file {source} is not a .safetensors file.{hint}")
        return CheckpointFiles(path)
    if _HUB_ID.fullmatch(str(source)):
        folder = _download(str(source), allow_pickle, revision)
        _check_folder(folder, allow_pickle)
        return CheckpointFiles(folder)
    raise CheckpointError(
        f"no checkpoint at {source!s}. Accepted: a diffusers folder, a .safetensors file, a hub id "
        f"(owner/name), {', '.join(_BUILTIN)}"
    )


def _builtin_folder(source: str) -> Path:
    if source not in _BUILTIN:
        raise CheckpointError(f"no built-in checkpoint {source!r}; there is {', '.join(_BUILTIN)}")
    return _BUILTIN[source]


def component_folder(folder: Path, component: str) -> Path:
    """Where a component of a diffusers folder is: in it, or, of the built-in model with
    instructions, in the first built-in model's."""
    own = folder / component
    return CHECKPOINT_DIR / component if folder == INSTRUCT_DIR and not own.is_dir() else own


def _download(hub_id: str, allow_pickle: bool, revision: str | None) -> Path:
    from diffusers import DiffusionPipeline

    try:
        folder = DiffusionPipeline.download(
            hub_id,
            revision=revision,
            use_safetensors=None if allow_pickle else True,
            safety_checker=None,
            feature_extractor=None,
        )
    except Exception as error:  # the hub's clients raise from several libraries
        raise CheckpointError(
            f"checkpoint {hub_id!r} is not a local folder or file, and could not be downloaded "
            f"from the Hugging Face hub: {type(error).__name__}: {error}"
        ) from error
    return Path(folder)


def _check_folder(folder: Path, allow_pickle: bool) -> None:
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder} is not a diffusers checkpoint: it has no model_index.json. Expected the "
            f"folders {', '.join(COMPONENTS)} next to it."
        )
    components = components_of(folder)
    missing = [name for name in components if not component_folder(folder, name).is_dir()]
    if index_of(folder).get("requires_aesthetics_score"):
        raise CheckpointError(f"{folder} cannot be edited with: {REFINER}")
    if missing:
        raise CheckpointError(
            f"{folder} is not a Stable Diffusion checkpoint: missing {', '.join(missing)}"
        )
    for component in components:
        if component in _WEIGHTS:
            weights_files(folder, component, allow_pickle)


def index_of(folder: Path) -> dict[str, Any]:
    """The model_index.json of a diffusers folder. Raises CheckpointError if it cannot be read."""
    try:
        content = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {folder} cannot be loaded: model_index.json: {type(error).__name__}: "
            f"{error}"
        ) from error
    return content


def components_of(folder: Path) -> tuple[str, ...]:
    """The components of a diffusers folder: `COMPONENTS`, and of Stable Diffusion XL two more."""
    return (*COMPONENTS, *(SECOND_PARTS if has_second_parts(index_of(folder)) else ()))


def weights_files(folder: Path, component: str, allow_pickle: bool) -> tuple[Path, ...]:
    """The weight files to read: safetensors if there are any, the plain variant before fp16."""
    stem = _WEIGHTS[component]
    suffixes = (".safetensors", *((".bin",) if allow_pickle else ()))
    pickled = "pytorch_model" if component.startswith("text_encoder") else stem
    for suffix in suffixes:
        for variant in ("", ".fp16"):
            name = pickled if suffix == ".bin" else stem
            found = sorted(component_folder(folder, component).glob(f"{name}*{suffix}"))
            found = [
                f for f in found if re.fullmatch(_shard_pattern(name, variant, suffix), f.name)
            ]
            if found:
                return tuple(found)
    raise CheckpointError(
        f"{component_folder(folder, component)} holds no {stem}.safetensors"
        + (
            ""
            if allow_pickle
            else "; pickled weights (.bin) can run code and are read only with allow_pickle"
        )
    )


def _shard_pattern(name: str, variant: str, suffix: str) -> str:
    """diffusers before 0.28 has the variant after the number of a shard."""
    half, part, end = re.escape(variant), r"(-\d+-of-\d+)", re.escape(suffix)
    return rf"{name}({half}{part}?|{part}{half}){end}"


def fingerprint_of(
    files: CheckpointFiles, allow_pickle: bool, config: str | Path | None = None
) -> str:
    digest = hashlib.blake2b(digest_size=16)
    if files.is_single_file:
        hash_file(digest, "single", files.path)
        if config is not None and Path(config).is_dir():
            for component in (*COMPONENTS, *SECOND_PARTS):
                _hash_configs(digest, component, Path(config) / component)
            _hash_empty_prompt(digest, Path(config))
        else:
            digest.update(str(config or SINGLE_FILE_CONFIG).encode())
        _hash_facts(digest, files, config)
        return digest.hexdigest()
    for component in components_of(files.path):
        _hash_configs(digest, component, component_folder(files.path, component))
        if component in _WEIGHTS:
            for path in weights_files(files.path, component, allow_pickle):
                hash_file(digest, f"{component}/{path.name}", path)
    _hash_empty_prompt(digest, files.path)
    _hash_spacing(digest, files.path)
    return digest.hexdigest()


def _hash_facts(digest: Any, files: CheckpointFiles, config: str | Path | None) -> None:
    """What else decides the edits of a single file: facts about its family, a bare tokenizer."""
    if facts := facts_used(files.path, config):
        digest.update(facts.encode())
        for name in TOKENIZER_FILES if config is not None and Path(config).is_dir() else ():
            if (Path(config or "") / name).is_file():
                hash_file(digest, f"tokenizer/{name}", Path(config or "") / name)
    elif config is not None:
        _hash_spacing(digest, configs_of(files.path, config))


def _hash_spacing(digest: Any, folder: Path | None) -> None:
    """Before 0.7.0, trailing spacing was run as leading: edits of checkpoints that ask for it have
    other ids since, and all others those they had."""
    if folder is None:
        return
    try:
        path = component_folder(folder, "scheduler") / "scheduler_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # that is refused when the checkpoint is checked
    if isinstance(config, dict) and config.get("timestep_spacing") == "trailing":
        digest.update(b"spacing:trailing\n")


def _hash_empty_prompt(digest: Any, folder: Path) -> None:
    """Whether an empty prompt is zero is in the index, which is not hashed whole."""
    if (folder / "model_index.json").is_file() and has_second_parts(index := index_of(folder)):
        is_zero = empty_prompt_is_zero(index, _config(folder, "unet"))
        digest.update(f"empty prompt is zero: {is_zero}".encode())


def _hash_configs(digest: Any, component: str, folder: Path) -> None:
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".txt", ".model"):
            hash_file(digest, f"{component}/{path.name}", path)


def hash_file(digest: Any, label: str, path: Path) -> None:
    """Updates a `hashlib` hash with a file's label, size and content."""
    digest.update(f"{label}:{path.stat().st_size}\n".encode())
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)


def default_parameters_of(
    files: CheckpointFiles, config: str | Path | None = None
) -> EditParameters:
    folder = files.path
    if files.is_single_file:
        known = config is not None or facts_used(files.path, config)
        configs = configs_of(files.path, config) if known else None
        if configs is None:
            return EditParameters()
        folder = configs
    recommended = folder / DEFAULTS_FILE
    if recommended.is_file():
        return _read_recommendation(recommended)
    parameters = EditParameters()
    sample_size = _config(folder, "unet").get("sample_size")
    if isinstance(sample_size, int):
        blocks = _config(folder, "vae").get("block_out_channels", [0] * 4)
        size_px = sample_size * 2 ** (len(blocks) - 1)
        parameters = replace(parameters, width_px=size_px, height_px=size_px)
    if is_told_sizes(_config(folder, "unet")):
        layers, scale = LayersByLevel(XL_LEVEL), XL_GUIDANCE_SCALE
        parameters = replace(parameters, layers=layers, guidance_scale=scale)
    elif parameters.width_px > EditParameters().width_px:
        # The published rule counts positions at 512 px, and names fewer layers of larger models.
        parameters = replace(parameters, layers=LayersByLevel(2))
    return parameters.edited_by(InstructPix2Pix()) if sees_source(folder) else parameters


def sees_source(folder: Path) -> bool:
    """Whether the UNet of a diffusers folder takes the source's latent beside the noisy one."""
    latent = _config(folder, "vae").get("latent_channels", 4)
    return bool(_config(folder, "unet").get("in_channels", 4) == 2 * latent)


def _config(folder: Path, component: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (component_folder(folder, component) / "config.json").read_text()
    )
    return content


def _read_recommendation(path: Path) -> EditParameters:
    try:
        values = json.loads(path.read_text())
        size_px = values.pop("size_px")
        return EditParameters.from_dict({**values, "width_px": size_px, "height_px": size_px})
    except (ValueError, KeyError, AttributeError, ParameterError) as error:
        raise CheckpointError(
            f"{path} holds no edit parameters: {type(error).__name__}: {error}. Expected JSON with "
            "size_px and any of steps, guidance_scale, layers, replaced_fraction, negative_prompt"
        ) from error

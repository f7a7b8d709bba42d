"""Stable Diffusion 1.x-family checkpoints: found, checked, fingerprinted, loaded.

Four kinds of source go through one door (`load_checkpoint`):

    builtin:still-life      the small model this package carries
    a folder                in diffusers' layout (model_index.json)
    a .safetensors file     the original single-file layout; its tokenizer and configs come from
    `config` owner/name              a repository on the Hugging Face hub, or its local cache

Weights are read from safetensors only; pickled ones (.bin, .ckpt) run code when loaded and are
refused unless `allow_pickle` says otherwise.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fpe_core.errors import CheckpointError, ParameterError
from fpe_core.parameters import EditParameters

_log = logging.getLogger(__name__)

BUILTIN_STILL_LIFE = "builtin:still-life"
DEFAULTS_FILE = "fpe_defaults.json"
# Configs and tokenizer for single files, which carry neither.
_SINGLE_FILE_CONFIG = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_PICKLED_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, ready to edit with.

    Attributes:
        name: the source it was loaded from, as given.
        fingerprint: hash of the weights' and configs' content, 32 hex digits.
        unet, vae, text_encoder, tokenizer: diffusers' and transformers' own objects, in eval mode.
        scheduler_config: the noise schedule it was trained with.
        device, dtype: where and in which precision the networks run. Latents stay in float32.
        default_parameters: what the checkpoint recommends, else the paper's.
    """

    name: str
    fingerprint: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    default_parameters: EditParameters

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent position along an edge."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


@dataclass(frozen=True)
class _Files:
    """Where a checkpoint lies on this machine: a diffusers folder or a single file."""

    folder: Path | None
    single: Path | None


def load_checkpoint(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    allow_pickle: bool = False,
    revision: str | None = None,
    config: str | Path | None = None,
) -> Checkpoint:
    """Loads a Stable Diffusion 1.x-family checkpoint.

    Args:
        source: see the module.
        device: "auto" takes CUDA, then MPS, then the CPU.
        dtype: "auto" is float16 on CUDA and float32 elsewhere; or float32, float16, bfloat16,
        float64. allow_pickle: also read .bin and .ckpt weights. They can run any code: only for
        files you trust. revision: branch, tag or commit on the hub.
        config: for a single file, the folder or hub id with the configs and the tokenizer.

    Raises:
        CheckpointError: what was given is no such checkpoint, or cannot be read.
    """
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    files = _locate(source, allow_pickle, revision)
    components = (
        _load_folder(files.folder, torch_dtype, allow_pickle)
        if files.folder is not None
        else _load_single_file(_existing(files.single), torch_dtype, config)
    )
    _check_family(str(source), components)
    for name in ("unet", "vae", "text_encoder"):
        components[name].requires_grad_(False).eval().to(torch_device)
    for name in ("unet", "vae"):  # the layout in which convolutions are fast, on CPU and GPU alike
        components[name].to(memory_format=torch.channels_last)
    return Checkpoint(
        name=str(source),
        fingerprint=_fingerprint(files, allow_pickle),
        unet=components["unet"],
        vae=components["vae"],
        text_encoder=components["text_encoder"],
        tokenizer=components["tokenizer"],
        scheduler_config=dict(components["scheduler"].config),
        device=torch_device,
        dtype=torch_dtype,
        default_parameters=_default_parameters(files),
    )


def checkpoint_fingerprint(
    source: str | Path, *, revision: str | None = None, allow_pickle: bool = False
) -> str:
    """Hash of a checkpoint's content, 32 hex digits: equal files anywhere give equal fingerprints.

    Reads the files once, loads nothing.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    return _fingerprint(_locate(source, allow_pickle, revision), allow_pickle)


def checkpoint_defaults(
    source: str | Path, *, revision: str | None = None, allow_pickle: bool = False
) -> EditParameters:
    """The edit parameters a checkpoint recommends (`fpe_defaults.json`), else the paper's at its
    own size. Loads no weights.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    return _default_parameters(_locate(source, allow_pickle, revision))


def choose_device(device: str | torch.device) -> torch.device:
    """ "auto" to CUDA, MPS or CPU, whichever is there first; anything else as torch reads it."""
    if isinstance(device, torch.device):
        return device
    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise CheckpointError(f"unknown device {device!r}; try auto, cpu, cuda, mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """ "auto" to float16 on CUDA, else float32; names to torch's types."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise CheckpointError(f"unknown dtype {dtype!r}; allowed: auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


# --- finding -------------------------------------------------------------------------------------


def _locate(source: str | Path, allow_pickle: bool, revision: str | None) -> _Files:
    if str(source).startswith("builtin:"):
        return _Files(_builtin_folder(str(source)), None)
    path = Path(source).expanduser()
    if path.is_dir():
        _check_folder(path, allow_pickle)
        return _Files(path, None)
    if path.is_file():
        if path.suffix != ".safetensors" and not (
            allow_pickle and path.suffix in _PICKLED_SUFFIXES
        ):
            hint = (
                " It is a pickle, which can run code when loaded; convert it to safetensors, "
                "or set allow_pickle if you trust it."
                if path.suffix in _PICKLED_SUFFIXES
                else ""
            )
            raise CheckpointError(f"checkpoint file {source} is not a .safetensors file.{hint}")
        return _Files(None, path)
    if _HUB_ID.fullmatch(str(source)):
        folder = _download(str(source), allow_pickle, revision)
        _check_folder(folder, allow_pickle)
        return _Files(folder, None)
    raise CheckpointError(
        f"no checkpoint at {source!s}. Accepted: a diffusers folder, a .safetensors file, a hub id "
        f"(owner/name), {BUILTIN_STILL_LIFE}"
    )


def _builtin_folder(source: str) -> Path:
    if source != BUILTIN_STILL_LIFE:
        raise CheckpointError(f"no built-in checkpoint {source!r}; there is {BUILTIN_STILL_LIFE}")
    from fpe_core.still_life import CHECKPOINT_DIR

    return CHECKPOINT_DIR


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
            f"checkpoint {hub_id!r} is no local folder or file, and could not be had from the "
            f"Hugging Face hub: {type(error).__name__}: {error}"
        ) from error
    return Path(folder)


def _check_folder(folder: Path, allow_pickle: bool) -> None:
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder} is no diffusers checkpoint: it has no model_index.json. Expected the "
            f"folders {', '.join(_COMPONENTS)} beside one."
        )
    missing = [name for name in _COMPONENTS if not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{folder} is no Stable Diffusion 1.x checkpoint: missing {', '.join(missing)}"
        )
    for component in _WEIGHTS:
        _weights_files(folder, component, allow_pickle)


def _weights_files(folder: Path, component: str, allow_pickle: bool) -> tuple[Path, ...]:
    """The weight files that will be read: safetensors first, the plain variant before fp16."""
    stem = _WEIGHTS[component]
    suffixes = (".safetensors", *((".bin",) if allow_pickle else ()))
    pickled = "pytorch_model" if component == "text_encoder" else stem
    for suffix in suffixes:
        for variant in ("", ".fp16"):
            name = pickled if suffix == ".bin" else stem
            found = sorted((folder / component).glob(f"{name}{variant}*{suffix}"))
            found = [
                f for f in found if re.fullmatch(_shard_pattern(name, variant, suffix), f.name)
            ]
            if found:
                return tuple(found)
    raise CheckpointError(
        f"{folder / component} holds no {stem}.safetensors"
        + (
            ""
            if allow_pickle
            else "; pickled weights (.bin) can run code and are read only with allow_pickle"
        )
    )


def _shard_pattern(name: str, variant: str, suffix: str) -> str:
    return rf"{name}{re.escape(variant)}(-\d+-of-\d+)?{re.escape(suffix)}"


def _existing(path: Path | None) -> Path:
    assert path is not None
    return path


# --- fingerprint and defaults --------------------------------------------------------------------


def _fingerprint(files: _Files, allow_pickle: bool) -> str:
    digest = hashlib.blake2b(digest_size=16)
    if files.folder is None:
        _hash_file(digest, "single", _existing(files.single))
        return digest.hexdigest()
    for component in _COMPONENTS:
        folder = files.folder / component
        names = sorted(
            path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model")
        )
        weights = (
            _weights_files(files.folder, component, allow_pickle) if component in _WEIGHTS else ()
        )
        for path in (*names, *weights):
            _hash_file(digest, f"{component}/{path.name}", path)
    return digest.hexdigest()


def _hash_file(digest: Any, label: str, path: Path) -> None:
    digest.update(f"{label}:{path.stat().st_size}\n".encode())
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)


def _default_parameters(files: _Files) -> EditParameters:
    if files.folder is None:
        return EditParameters()
    recommended = files.folder / DEFAULTS_FILE
    if recommended.is_file():
        return _read_recommendation(recommended)
    unet = json.loads((files.folder / "unet" / "config.json").read_text())
    vae = json.loads((files.folder / "vae" / "config.json").read_text())
    sample_size = unet.get("sample_size")
    if not isinstance(sample_size, int):
        return EditParameters()
    size_px = sample_size * 2 ** (len(vae.get("block_out_channels", [0] * 4)) - 1)
    return EditParameters(width_px=size_px, height_px=size_px)


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


# --- loading -------------------------------------------------------------------------------------


def _load_folder(folder: Path, dtype: torch.dtype, allow_pickle: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    components: dict[str, Any] = {}
    try:
        for name, model_class in classes.items():
            weights = _weights_files(folder, name, allow_pickle)[0].name
            options: dict[str, Any] = {"use_safetensors": weights.endswith(".safetensors")}
            if ".fp16" in weights:
                options["variant"] = "fp16"
            dtype_option = "dtype" if name == "text_encoder" else "torch_dtype"
            components[name] = model_class.from_pretrained(
                folder / name, local_files_only=True, **options, **{dtype_option: dtype}
            )
        components["tokenizer"] = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        scheduler: Any = DDIMScheduler
        components["scheduler"] = scheduler.from_pretrained(folder / "scheduler")
    except CheckpointError:
        raise
    except Exception as error:  # broken JSON, truncated safetensors, shapes that do not match, ...
        raise CheckpointError(
            f"checkpoint {folder} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return components


def _load_single_file(path: Path, dtype: torch.dtype, config: str | Path | None) -> dict[str, Any]:
    from diffusers import StableDiffusionPipeline

    try:
        pipe = StableDiffusionPipeline.from_single_file(
            str(path),
            config=str(config or _SINGLE_FILE_CONFIG),
            torch_dtype=dtype,
            local_files_only=config is not None and Path(config).is_dir(),
            safety_checker=None,
            requires_safety_checker=False,
        )
    except Exception as error:
        raise CheckpointError(
            f"single-file checkpoint {path} cannot be loaded with the configs of "
            f"{config or _SINGLE_FILE_CONFIG}: {type(error).__name__}: {error}. A single file "
            "carries neither configs nor a tokenizer; without a network give model.config, a "
            "diffusers folder that has them."
        ) from error
    return {name: getattr(pipe, name) for name in _COMPONENTS}


def _check_family(source: str, components: Mapping[str, Any]) -> None:
    """Refuses what loads but is not of the family: SDXL, inpainting, depth and other relatives."""
    unet = components["unet"]
    config = unet.config
    problems = []
    if type(components["text_encoder"]).__name__ != "CLIPTextModel":
        problems.append("its text encoder is no CLIPTextModel")
    if config.in_channels != components["vae"].config.latent_channels:
        problems.append(
            f"its UNet takes {config.in_channels} channels where the autoencoder has "
            f"{components['vae'].config.latent_channels} (an inpainting or depth model?)"
        )
    if config.get("addition_embed_type") is not None:
        problems.append("its UNet wants added embeddings (SDXL?)")
    if config.get("class_embed_type") is not None:
        problems.append("its UNet is class-conditional")
    width = components["text_encoder"].config.hidden_size
    if config.cross_attention_dim != width:
        problems.append(
            f"its UNet attends over width {config.cross_attention_dim}, its text encoder "
            f"gives {width}"
        )
    if not any(name.endswith("attn1.processor") for name in unet.attn_processors):
        problems.append("its UNet has no self-attention layers")
    if problems:
        raise CheckpointError(
            f"{source} is not of the Stable Diffusion 1.x family: {'; '.join(problems)}"
        )

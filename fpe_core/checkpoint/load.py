"""Loads checkpoints of the Stable Diffusion 1.x family, and refuses others.

`load_checkpoint` accepts four kinds of source:

    builtin:still-life      the small model in this package
    builtin:still-life-instruct  the one that reads instructions, for `instruct_pix2pix`
    a folder                in diffusers' layout (model_index.json)
    a .safetensors file     the original single-file layout; the tokenizer, and configs that are not
                            its family's usual ones, from `config`
    owner/name              a repository on the Hugging Face hub, or its local cache

Weights are read from safetensors only. Pickled ones (.bin, .ckpt) can run code when loaded and are
refused unless `allow_pickle` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fpe_core.checkpoint.check import check_files, unread_weights
from fpe_core.checkpoint.files import (
    component_folder,
    default_parameters_of,
    fingerprint_of,
    locate,
    weights_files,
)
from fpe_core.checkpoint.pretrained import (
    clip_tokenizer,
    limit_window,
    load_network,
)
from fpe_core.checkpoint.single_file_load import load_single_file
from fpe_core.device import choose_device, choose_dtype, warn_of_slow_bfloat16
from fpe_core.errors import CheckpointError
from fpe_core.parameters import EditParameters
from fpe_core.unet.check import check_against_diffusers
from fpe_core.unet.norms import make_norms_exact
from fpe_core.unet.parts import differences


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
        return int(self.vae.config.latent_channels)

    @property
    def sees_source(self) -> bool:
        """Whether its UNet takes the source's latent beside the noisy one, as InstructPix2Pix's
        does."""
        return int(self.unet.config.in_channels) == 2 * self.latent_channels

    @property
    def vae_factor(self) -> int:
        """Pixels per latent position along an edge."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


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
            float64.
        allow_pickle: also read .bin and .ckpt weights. They can run any code: only for files you
            trust.
        revision: branch, tag or commit on the hub.
        config: for a single file, the folder or hub id with the tokenizer, and with configs where
            they are others than its family's (`fpe_core.checkpoint.single_file`).

    Raises:
        CheckpointError: `source` is not such a checkpoint, or cannot be read.
    """
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    warn_of_slow_bfloat16(torch_dtype, torch_device)
    files = locate(source, allow_pickle, revision)
    check_files(source, files, allow_pickle, config)
    if files.is_single_file:
        components = load_single_file(files, torch_dtype, config)
    else:
        components = _load_folder(files.path, torch_dtype, allow_pickle)
    if found := differences(components["unet"]):
        raise CheckpointError(
            f"{source} is not of the Stable Diffusion 1.x family: of its UNet: {'; '.join(found)}"
        )
    positions = components["text_encoder"].config.max_position_embeddings
    components["tokenizer"] = limit_window(components["tokenizer"], positions)
    for name in ("unet", "vae", "text_encoder"):
        components[name].requires_grad_(False).eval().to(torch_device)
    for name in ("unet", "vae"):  # the layout in which convolutions are fast, on CPU and GPU alike
        components[name].to(memory_format=torch.channels_last)
        make_norms_exact(components[name])
    check_against_diffusers(components["unet"])
    return Checkpoint(
        name=str(source),
        fingerprint=fingerprint_of(files, allow_pickle, config),
        unet=components["unet"],
        vae=components["vae"],
        text_encoder=components["text_encoder"],
        tokenizer=components["tokenizer"],
        scheduler_config=dict(components["scheduler"].config),
        device=torch_device,
        dtype=torch_dtype,
        default_parameters=default_parameters_of(files, config),
    )


def _load_folder(folder: Path, dtype: torch.dtype, allow_pickle: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    components: dict[str, Any] = {}
    for name, model_class in classes.items():
        weights = weights_files(folder, name, allow_pickle)[0].name
        options: dict[str, Any] = {"use_safetensors": weights.endswith(".safetensors")}
        if ".fp16" in weights:
            options["variant"] = "fp16"
        components[name] = load_network(
            model_class,
            component_folder(folder, name),
            f"checkpoint {component_folder(folder, name)}",
            dtype,
            unread_weights(folder, name),
            **options,
        )
    components["tokenizer"] = clip_tokenizer(component_folder(folder, "tokenizer"))
    components["scheduler"] = _scheduler(folder)
    return components


def _scheduler(folder: Path) -> Any:
    from diffusers import DDIMScheduler

    kind: Any = DDIMScheduler
    place = component_folder(folder, "scheduler")
    try:
        return kind.from_pretrained(place)
    except Exception as error:  # broken JSON, a config that the class refuses
        raise CheckpointError(
            f"checkpoint {place} cannot be loaded: {type(error).__name__}: {error}"
        ) from error

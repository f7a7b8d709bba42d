"""Loads checkpoints of the Stable Diffusion 1.x, 2.x and XL families, and refuses others.

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fpe_core.checkpoint.add_on_check import check_add_ons
from fpe_core.checkpoint.add_on_files import add_to_fingerprint, located, vae_weights
from fpe_core.checkpoint.add_ons import AddOns, Embedding, Lora
from fpe_core.checkpoint.check import check_files, unread_weights
from fpe_core.checkpoint.embeddings import add_embeddings
from fpe_core.checkpoint.files import (
    component_folder,
    components_of,
    default_parameters_of,
    fingerprint_of,
    index_of,
    locate,
    weights_files,
)
from fpe_core.checkpoint.lora import merge_loras
from fpe_core.checkpoint.overflow import config_overflows, overflows
from fpe_core.checkpoint.pretrained import (
    clip_tokenizer,
    limit_window,
    load_network,
)
from fpe_core.checkpoint.single_file_load import load_single_file
from fpe_core.checkpoint.vae import load_vae
from fpe_core.checkpoint.xl import empty_prompt_is_zero
from fpe_core.device import choose_device, choose_dtype, warn_of_slow_bfloat16
from fpe_core.errors import CheckpointError
from fpe_core.parameters import EditParameters
from fpe_core.text_settings import AS_IT_IS, TextSettings
from fpe_core.unet.check import check_against_diffusers
from fpe_core.unet.family import is_told_sizes
from fpe_core.unet.norms import make_norms_exact
from fpe_core.unet.parts import differences
from fpe_core.unet.text_encoders import TextEncoders

NETWORKS = frozenset({"unet", "vae", "text_encoder", "text_encoder_2"})
"""The components that have weights."""


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
        text_encoder_2, tokenizer_2: of Stable Diffusion XL; None for other families.
        empty_prompt_is_zero: whether an empty prompt is an embedding of zeros, as XL was trained.
        text_settings: how its text encoders are used.
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
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    empty_prompt_is_zero: bool = False
    text_settings: TextSettings = AS_IT_IS

    @property
    def text_encoders(self) -> TextEncoders:
        """Its one or two text encoders, with what else decides a prompt's embedding."""
        both = (self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)
        tokenizers, encoders = zip(*(each for each in both if each[1] is not None), strict=True)
        return TextEncoders(tokenizers, encoders, self.empty_prompt_is_zero, self.text_settings)

    @property
    def is_told_sizes(self) -> bool:
        """Whether it is Stable Diffusion XL, which is told the sizes of pictures."""
        return is_told_sizes(self.unet.config)

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
    clip_skip: int = 0,
    long_prompts: str = "truncate",
    loras: Sequence[Lora | str | Path] = (),
    embeddings: Sequence[Embedding | str | Path] = (),
    vae: str | Path | None = None,
) -> Checkpoint:
    """Loads a checkpoint of the Stable Diffusion 1.x, 2.x or XL family.

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
        clip_skip, long_prompts: see `TextSettings`.
        loras: what is added to the weights, in float32 or wider. The sum does not depend on the
            order in which they are named.
        embeddings: tokens that prompts may use besides.
        vae: an autoencoder to use instead of the checkpoint's own: a folder, a hub id, or a
            .safetensors file, which has the config of the checkpoint's own.

    Raises:
        ParameterError: `clip_skip` or `long_prompts` is out of range.
        CheckpointError: `source` is not such a checkpoint, or cannot be read; or a file of the
            others does not fit it.
    """
    text_settings = TextSettings(clip_skip, long_prompts)
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    warn_of_slow_bfloat16(torch_dtype, torch_device)
    files = locate(source, allow_pickle, revision)
    given = () if vae is None else ("vae",)
    check_files(source, files, allow_pickle, config, given)
    add_ons = located(AddOns.of(loras, embeddings, vae), allow_pickle)
    check_add_ons(source, files, add_ons, allow_pickle, config)
    loaded_as = torch.promote_types(torch_dtype, torch.float32) if add_ons else torch_dtype
    if files.is_single_file:
        components = load_single_file(files, loaded_as, config, given)
    else:
        components = _load_folder(files.path, loaded_as, allow_pickle)
    if found := differences(components["unet"]):
        raise CheckpointError(
            f"{source} is not of the Stable Diffusion 1.x, 2.x or XL family: of its UNet: "
            f"{'; '.join(found)}"
        )
    _add(components, add_ons, source, allow_pickle, torch_dtype)
    positions = components["text_encoder"].config.max_position_embeddings
    components["tokenizer"] = limit_window(components["tokenizer"], positions)
    if second := components.get("tokenizer_2"):
        second_positions = components["text_encoder_2"].config.max_position_embeddings
        components["tokenizer_2"] = limit_window(second, second_positions)
    texts = (components[name].config for name in NETWORKS & components.keys() if "text" in name)
    text_settings.require_layers(config.num_hidden_layers for config in texts)
    for name in NETWORKS & components.keys():
        components[name].requires_grad_(False).eval().to(torch_device)
    for name in ("unet", "vae"):  # the layout in which convolutions are fast, on CPU and GPU alike
        components[name].to(memory_format=torch.channels_last)
        make_norms_exact(components[name])
    check_against_diffusers(components["unet"])
    return Checkpoint(
        name=str(source),
        fingerprint=text_settings.of_fingerprint(
            add_to_fingerprint(fingerprint_of(files, allow_pickle, config), add_ons, allow_pickle)
        ),
        unet=components["unet"],
        vae=components["vae"],
        text_encoder=components["text_encoder"],
        tokenizer=components["tokenizer"],
        scheduler_config=dict(components["scheduler"].config),
        device=torch_device,
        dtype=torch_dtype,
        default_parameters=default_parameters_of(files, config),
        text_encoder_2=components.get("text_encoder_2"),
        tokenizer_2=components.get("tokenizer_2"),
        empty_prompt_is_zero=bool(components.get("empty_prompt_is_zero")),
        text_settings=text_settings,
    )


def _add(
    components: dict[str, Any],
    add_ons: AddOns,
    source: str | Path,
    allow_pickle: bool,
    dtype: torch.dtype,
) -> None:
    """Puts the add-ons into the loaded networks, and makes these of the type they run in."""
    merge_loras(components, add_ons.loras, source)
    add_embeddings(components, add_ons.embeddings)
    is_xl = components.get("text_encoder_2") is not None
    if add_ons.vae is not None:
        path = Path(add_ons.vae)
        weights = vae_weights(path, allow_pickle)
        components["vae"] = load_vae(path, weights, components["vae"], components["unet"])
    for name in NETWORKS & components.keys() if add_ons else ():
        is_wide = name == "vae" and is_xl and config_overflows(components["vae"].config, dtype)
        # not with diffusers' own method, which logs a warning about nothing
        torch.nn.Module.to(components[name], torch.float32 if is_wide else dtype)


def _load_folder(folder: Path, dtype: torch.dtype, allow_pickle: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    classes = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    components: dict[str, Any] = {}
    names = components_of(folder)
    for name in filter(classes.__contains__, names):
        weights = weights_files(folder, name, allow_pickle)[0].name
        options: dict[str, Any] = {"use_safetensors": weights.endswith(".safetensors")}
        if ".fp16" in weights:
            options["variant"] = "fp16"
        components[name] = load_network(
            classes[name],
            component_folder(folder, name),
            f"checkpoint {component_folder(folder, name)}",
            torch.float32 if name == "vae" and overflows(folder, dtype) else dtype,
            unread_weights(folder, name),
            **options,
        )
    for name in {"tokenizer", "tokenizer_2"} & {*names}:
        components[name] = clip_tokenizer(component_folder(folder, name))
    components["empty_prompt_is_zero"] = empty_prompt_is_zero(
        index_of(folder), components["unet"].config
    )
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

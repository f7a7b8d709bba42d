"""Writes a diffusers folder as one .safetensors file in the original Stable Diffusion layout."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

_UNET_PLACES = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.resnets.1.": "middle_block.2.",
}
for _i in range(4):
    for _j in range(2):
        _UNET_PLACES[f"down_blocks.{_i}.resnets.{_j}."] = f"input_blocks.{3 * _i + _j + 1}.0."
        _UNET_PLACES[f"down_blocks.{_i}.attentions.{_j}."] = f"input_blocks.{3 * _i + _j + 1}.1."
    for _j in range(3):
        _UNET_PLACES[f"up_blocks.{_i}.resnets.{_j}."] = f"output_blocks.{3 * _i + _j}.0."
        _UNET_PLACES[f"up_blocks.{_i}.attentions.{_j}."] = f"output_blocks.{3 * _i + _j}.1."
    _UNET_PLACES[f"down_blocks.{_i}.downsamplers.0.conv."] = f"input_blocks.{3 * _i + 3}.0.op."
    _UNET_PLACES[f"up_blocks.{_i}.upsamplers.0."] = (
        f"output_blocks.{3 * _i + 2}.{1 if _i == 0 else 2}."
    )
_UNET_RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_PLACES = {
    "mid_block.attentions.0.": "mid.attn_1.",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
for _i in range(4):
    for _j in range(3):
        _VAE_PLACES[f"down_blocks.{_i}.resnets.{_j}."] = f"down.{_i}.block.{_j}."
        _VAE_PLACES[f"up_blocks.{_i}.resnets.{_j}."] = f"up.{3 - _i}.block.{_j}."
    _VAE_PLACES[f"down_blocks.{_i}.downsamplers.0."] = f"down.{_i}.downsample."
    _VAE_PLACES[f"up_blocks.{_i}.upsamplers.0."] = f"up.{3 - _i}.upsample."
_VAE_ATTENTION_PARTS = {
    "group_norm.": "norm.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "proj_out.",
}


def write_single_file(folder: Path, path: Path) -> Path:
    """The weights of the diffusers checkpoint in `folder` as one file at `path`."""
    weights: dict[str, Tensor] = {}
    for key, value in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        weights[f"model.diffusion_model.{_unet_key(key)}"] = value
    for key, value in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        name = _vae_key(key)
        if "attn_1" in name and name.endswith("weight") and value.ndim == 2:
            value = value[..., None, None].contiguous()
        weights[f"first_stage_model.{name}"] = value
    for key, value in load_file(folder / "text_encoder/model.safetensors").items():
        prefix = "" if key.startswith("text_model.") else "text_model."
        weights[f"cond_stage_model.transformer.{prefix}{key}"] = value
    save_file(weights, path)
    return path


def _unet_key(key: str) -> str:
    key = _replace(key, _UNET_PLACES)
    return key if "transformer_blocks" in key else _replace(key, _UNET_RESNET_PARTS)


def _vae_key(key: str) -> str:
    key = _replace(key, _VAE_PLACES)
    return _replace(key, _VAE_ATTENTION_PARTS) if "attn_1" in key else key


def _replace(key: str, names: dict[str, str]) -> str:
    for ours, original in names.items():
        key = key.replace(ours, original)
    return key

"""Names of weights in a single file: the original Stable Diffusion layout.

diffusers converts such a file when it loads it. Here the names go the other way, from diffusers'
to the file's, so that the file's header alone says whether it is complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fpe_core.checkpoint.layout import Shapes

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model."),
}
"""What the names of each network begin with; the last one is OpenCLIP's, of Stable Diffusion 2."""
EMA_PREFIX = "model_ema."
"""What the names of the average of the UNet's weights begin with, which training keeps beside."""
_OPENCLIP = "cond_stage_model.model."
XL_PREFIXES = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")
"""Those of the two text encoders of Stable Diffusion XL."""


def is_xl_file(names: Iterable[str]) -> bool:
    """Whether a file with weights of these names is of Stable Diffusion XL."""
    return any(name.startswith(XL_PREFIXES) for name in names)


def prefixes_of(names: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """`PREFIXES`, as the family of a file with these names has them."""
    if not is_xl_file(names):
        return PREFIXES
    first, second = XL_PREFIXES
    return {**PREFIXES, "text_encoder": (first,), "text_encoder_2": (second,)}


_RESNET_PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
}
_UNET_PLACE = re.compile(
    r"(?P<side>down|mid|up)_block(s\.(?P<block>\d+))?\.(?P<kind>\w+)\.(?P<number>\d+)\.(?P<rest>.+)"
)
_AUTOENCODER_PARTS = (
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)
_OPENCLIP_PARTS = (
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_OPENCLIP_QUERY = re.compile(
    r"^(transformer\.resblocks\.\d+)\.self_attn\.[qkv]_proj\.(weight|bias)$"
)


def unet_in_file(weights: Shapes, config: Mapping[str, Any]) -> Shapes | None:
    """The weights of a UNet under their names in a file; None: diffusers converts no such UNet."""
    layers = config.get("layers_per_block", 2)
    if not isinstance(layers, int) or config.get("mid_block_type", "") is None:
        return None
    return {
        PREFIXES["unet"][0] + _unet_name(name, layers, weights): s for name, s in weights.items()
    }


def _unet_name(name: str, layers: int, weights: Iterable[str]) -> str:
    for ours, original in _UNET_ENDS.items():
        if name.startswith(ours):
            return original + name.removeprefix(ours)
    place = _UNET_PLACE.fullmatch(name)
    assert place is not None, name
    side, kind, rest = place["side"], place["kind"], place["rest"]
    block, number = int(place["block"] or 0), int(place["number"])
    first = block * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        after = 2 if f"up_blocks.{block}.attentions.{layers}.norm.weight" in weights else 1
        return f"output_blocks.{first + layers}.{after}.{rest}"
    part = int(kind == "attentions")
    if kind == "resnets":
        module, _, last = rest.partition(".")
        rest = f"{_RESNET_PARTS[module]}.{last}"
    if side == "mid":
        return f"middle_block.{1 if part else 2 * number}.{rest}"
    if side == "down":
        return f"input_blocks.{first + number + 1}.{part}.{rest}"
    return f"output_blocks.{first + number}.{part}.{rest}"


def autoencoder_in_file(weights: Shapes, config: Mapping[str, Any]) -> Shapes:
    """The weights of an autoencoder under their names in a file."""
    levels = len(config.get("block_out_channels", (64,)))
    found = Shapes()
    for name, shape in weights.items():
        name = re.sub(
            r"\.up_blocks\.(\d+)\.(resnets\.(\d+)|upsamplers\.0)\.",
            lambda m: f".up.{levels - 1 - int(m[1])}.{f'block.{m[3]}' if m[3] else 'upsample'}.",
            name,
        )
        found[PREFIXES["vae"][0] + _substituted(name, _AUTOENCODER_PARTS)] = shape
    return found


def text_encoder_in_file(weights: Shapes, names: Iterable[str]) -> Shapes:
    """The weights of a text encoder under the names they have in a file with these `names`: CLIP's
    own, with `text_model.` or, in some old files, without it; or OpenCLIP's."""
    names = list(names)
    if any(name.startswith(_OPENCLIP) for name in names):
        return _as_openclip(weights, _OPENCLIP)
    start = PREFIXES["text_encoder"][0]
    if not has_bare_text_encoder(names):
        start += "text_model."
    return {start + name: shape for name, shape in weights.items()}


def has_bare_text_encoder(names: Iterable[str]) -> bool:
    """Whether CLIP's names in a file lack `text_model.`."""
    bare = f"{PREFIXES['text_encoder'][0]}embeddings."
    return any(name.startswith(bare) for name in names)


def text_encoders_of_xl_in_file(first: Shapes, second: Shapes) -> tuple[Shapes, Shapes]:
    """The weights of the two text encoders of Stable Diffusion XL under their names in a file.

    `first`: of a CLIPTextModel, `second`: of a CLIPTextModelWithProjection, both without the prefix
    `text_model.`; OpenCLIP has the projection the other way round.
    """
    return (
        {XL_PREFIXES[0] + name: shape for name, shape in first.items()},
        _as_openclip(second, XL_PREFIXES[1]),
    )


def _as_openclip(weights: Shapes, prefix: str) -> Shapes:
    """OpenCLIP's names; it has queries, keys and values in one."""
    found = Shapes()
    for name, shape in weights.items():
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = shape[::-1]
            continue
        original = _substituted(name, _OPENCLIP_PARTS)
        if joined := _OPENCLIP_QUERY.match(original):
            original, shape = f"{joined[1]}.attn.in_proj_{joined[2]}", (3 * shape[0], *shape[1:])
        found[prefix + original] = shape
    return found


def _substituted(name: str, parts: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in parts:
        name = re.sub(pattern, replacement, name)
    return name

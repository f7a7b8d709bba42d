"""The weights that diffusers' and transformers' classes have, from a config alone.

A config and the headers of safetensors files say whether a checkpoint is complete, without torch
and without reading a weight. These are the networks of the Stable Diffusion 1.x, 2.x and XL
families; a config with an option that is not described here gives None, and the check is left to
loading.
Held against the libraries' own modules in tests/fpe_core/checkpoint/test_layout.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Shapes = dict[str, tuple[int, ...]]
"""Names of weights, as diffusers and transformers have them, and their shapes."""


def unet_weights(config: Mapping[str, Any]) -> Shapes | None:
    """The weights of a UNet2DConditionModel; None: not described here."""
    options = {**_UNET_DEFAULTS, **config}
    if any(options.get(key) not in allowed for key, allowed in _UNET_DESCRIBED.items()):
        return None
    try:
        return _UNet(options).weights()
    except (TypeError, ValueError, IndexError, KeyError, ZeroDivisionError):
        return None  # a config that the class itself refuses, or reads in a way of its own


def autoencoder_weights(config: Mapping[str, Any]) -> Shapes | None:
    """The weights of an AutoencoderKL; None: not described here."""
    options = {**_AUTOENCODER_DEFAULTS, **config}
    kinds = {*options["down_block_types"], *options["up_block_types"]}
    if not kinds <= {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
        return None
    try:
        return _autoencoder(options)
    except (TypeError, ValueError, IndexError, KeyError):
        return None


def text_encoder_weights(config: Mapping[str, Any]) -> Shapes:
    """The weights of a CLIPTextModel, without the prefix `text_model.` that some files have."""
    options = {**_TEXT_DEFAULTS, **text_config(config)}
    width = int(options["hidden_size"])
    return {
        "embeddings.token_embedding.weight": (int(options["vocab_size"]), width),
        "embeddings.position_embedding.weight": (int(options["max_position_embeddings"]), width),
        **_clip_layers(options),
        **_norm("final_layer_norm", width),
    }


def projected_text_encoder_weights(config: Mapping[str, Any]) -> Shapes:
    """The weights of a CLIPTextModelWithProjection, named as those of `text_encoder_weights`."""
    options = {**_TEXT_DEFAULTS, "projection_dim": 512, **text_config(config)}
    shape = (int(options["projection_dim"]), int(options["hidden_size"]))
    return {**text_encoder_weights(config), "text_projection.weight": shape}


def clip_weights(config: Mapping[str, Any]) -> Shapes:
    """The weights of a CLIPModel: both towers, and the projections into the space they share."""
    options = {**_VISION_DEFAULTS, **_part(config, "vision_config")}
    text_width = int({**_TEXT_DEFAULTS, **text_config(config)}["hidden_size"])
    width, patch = int(options["hidden_size"]), int(options["patch_size"])
    shared = int(config.get("projection_dim", 512))
    vision = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, int(options["num_channels"]), patch, patch),
        "embeddings.position_embedding.weight": (
            (int(options["image_size"]) // patch) ** 2 + 1,
            width,
        ),
        **_norm("pre_layrnorm", width),  # as transformers spells it
        **_clip_layers(options),
        **_norm("post_layernorm", width),
    }
    return {
        **{f"text_model.{name}": shape for name, shape in text_encoder_weights(config).items()},
        **{f"vision_model.{name}": shape for name, shape in vision.items()},
        "text_projection.weight": (shared, text_width),
        "visual_projection.weight": (shared, width),
        "logit_scale": (),
    }


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text encoder's part of a config: all of it, or that of a whole CLIP."""
    part = config.get("text_config")
    return _part(config, "text_config") if isinstance(part, Mapping) else config


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A tower's part of a CLIP's config; older ones repeat it as name_dict, which counts more."""
    return {**(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}


def _clip_layers(options: Mapping[str, Any]) -> Shapes:
    width, inner = int(options["hidden_size"]), int(options["intermediate_size"])
    found = Shapes()
    for layer in range(int(options["num_hidden_layers"])):
        place = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _affine(f"{place}.self_attn.{name}", width, width)
        found |= _norm(f"{place}.layer_norm1", width) | _norm(f"{place}.layer_norm2", width)
        found |= _affine(f"{place}.mlp.fc1", inner, width)
        found |= _affine(f"{place}.mlp.fc2", width, inner)
    return found


_UNET_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "use_linear_projection": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}
"""Those of diffusers' UNet2DConditionModel."""

_UNET_DESCRIBED: Mapping[str, tuple[object, ...]] = {
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
    "time_embedding_type": ("positional",),
    "attention_type": ("default",),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "cross_attention_norm": (None,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None, "text_time"),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "only_cross_attention": (None, False),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (None, False),
}
"""Options that add or remove weights, and the values of them that are described here."""

_AUTOENCODER_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
"""Those of diffusers' AutoencoderKL."""

_TEXT_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "max_position_embeddings": 77,
}
"""Those of transformers' CLIPTextConfig."""

_VISION_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
"""Those of transformers' CLIPVisionConfig."""


def _affine(place: str, outputs: int, inputs: int, kernel: int | None = None) -> Shapes:
    """A linear layer, or a convolution with a square kernel, with its bias."""
    edges = () if kernel is None else (kernel, kernel)
    return {f"{place}.weight": (outputs, inputs, *edges), f"{place}.bias": (outputs,)}


def _norm(place: str, channels: int) -> Shapes:
    return {f"{place}.weight": (channels,), f"{place}.bias": (channels,)}


def _resnet(place: str, inputs: int, outputs: int) -> Shapes:
    """ResnetBlock2D without what it takes from the timestep."""
    found = _norm(f"{place}.norm1", inputs) | _affine(f"{place}.conv1", outputs, inputs, 3)
    found |= _norm(f"{place}.norm2", outputs) | _affine(f"{place}.conv2", outputs, outputs, 3)
    return found | (
        _affine(f"{place}.conv_shortcut", outputs, inputs, 1) if inputs != outputs else {}
    )


def _each(value: Any, count: int) -> list[Any]:
    """An option of every block: the same for all, or a list."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise ValueError(f"{len(values)} values for {count} blocks")
    return values


class _UNet:
    """The options of a UNet2DConditionModel, block by block on the way down."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._channels = [int(channels) for channels in options["block_out_channels"]]
        count = len(self._channels)
        self._layers = _each(options["layers_per_block"], count)
        self._depths = _each(options["transformer_layers_per_block"], count)
        self._widths_of_text = _each(options["cross_attention_dim"], count)
        # diffusers reads attention_head_dim as the number of heads, unless both are given
        self._heads = _each(options["num_attention_heads"] or options["attention_head_dim"], count)
        self._embedding = int(options["time_embedding_dim"] or 4 * self._channels[0])

    def weights(self) -> Shapes:
        options, first = self._options, self._channels[0]
        found = _affine("conv_in", first, options["in_channels"], options["conv_in_kernel"])
        found |= _affine("time_embedding.linear_1", self._embedding, first)
        found |= _affine("time_embedding.linear_2", self._embedding, self._embedding)
        if options.get("addition_embed_type") is not None:
            taken = options["projection_class_embeddings_input_dim"]
            found |= _affine("add_embedding.linear_1", self._embedding, taken)
            found |= _affine("add_embedding.linear_2", self._embedding, self._embedding)
        for block, kind in enumerate(options["down_block_types"]):
            found |= self._down(block, str(kind))
        if options["mid_block_type"] is not None:
            found |= self._middle()
        for block, kind in enumerate(options["up_block_types"]):
            found |= self._up(block, str(kind))
        if options["norm_num_groups"] is not None:
            found |= _norm("conv_norm_out", first)
        return found | _affine(
            "conv_out", options["out_channels"], first, options["conv_out_kernel"]
        )

    def _down(self, block: int, kind: str) -> Shapes:
        outputs = self._channels[block]
        place, found = f"down_blocks.{block}", Shapes()
        for layer in range(self._layers[block]):
            inputs = self._channels[max(block - 1, 0)] if layer == 0 else outputs
            found |= self._layer(place, layer, block, kind, inputs=inputs)
        if block < len(self._channels) - 1:
            found |= _affine(f"{place}.downsamplers.0.conv", outputs, outputs, 3)
        return found

    def _middle(self) -> Shapes:
        last, channels = len(self._channels) - 1, self._channels[-1]
        return (
            self._timed_resnet("mid_block.resnets.0", channels, channels)
            | self._transformer("mid_block.attentions.0", last)
            | self._timed_resnet("mid_block.resnets.1", channels, channels)
        )

    def _up(self, block: int, kind: str) -> Shapes:
        """`block` counts from the deepest one upwards; the options are those of its level."""
        level = len(self._channels) - 1 - block
        outputs = self._channels[level]
        below = self._channels[min(level + 1, len(self._channels) - 1)]
        above = self._channels[max(level - 1, 0)]
        place, found = f"up_blocks.{block}", Shapes()
        layers = self._layers[level] + 1
        for layer in range(layers):
            skipped = above if layer == layers - 1 else outputs
            inputs = (below if layer == 0 else outputs) + skipped
            found |= self._layer(place, layer, level, kind, inputs=inputs)
        if level > 0:
            found |= _affine(f"{place}.upsamplers.0.conv", outputs, outputs, 3)
        return found

    def _layer(self, place: str, layer: int, level: int, kind: str, *, inputs: int) -> Shapes:
        """A residual block, and the transformer that follows it in blocks with attention."""
        found = self._timed_resnet(f"{place}.resnets.{layer}", inputs, self._channels[level])
        if "CrossAttn" in kind:
            found |= self._transformer(f"{place}.attentions.{layer}", level)
        return found

    def _timed_resnet(self, place: str, inputs: int, outputs: int) -> Shapes:
        twice = 2 if self._options["resnet_time_scale_shift"] == "scale_shift" else 1
        return _resnet(place, inputs, outputs) | _affine(
            f"{place}.time_emb_proj", twice * outputs, self._embedding
        )

    def _transformer(self, place: str, level: int) -> Shapes:
        """Transformer2DModel with blocks of self-attention, cross-attention and a gated GELU."""
        channels, heads = self._channels[level], int(self._heads[level])
        width = heads * (channels // heads)
        kernel = None if self._options["use_linear_projection"] else 1
        found = _norm(f"{place}.norm", channels)
        found |= _affine(f"{place}.proj_in", width, channels, kernel)
        for number in range(int(self._depths[level])):
            block = f"{place}.transformer_blocks.{number}"
            for attn, seen in (("attn1", width), ("attn2", int(self._widths_of_text[level]))):
                found[f"{block}.{attn}.to_q.weight"] = (width, width)
                found[f"{block}.{attn}.to_k.weight"] = (width, seen)
                found[f"{block}.{attn}.to_v.weight"] = (width, seen)
                found |= _affine(f"{block}.{attn}.to_out.0", width, width)
            for norm in ("norm1", "norm2", "norm3"):
                found |= _norm(f"{block}.{norm}", width)
            found |= _affine(f"{block}.ff.net.0.proj", 8 * width, width)
            found |= _affine(f"{block}.ff.net.2", width, 4 * width)
        return found | _affine(f"{place}.proj_out", channels, width, kernel)


def _autoencoder(options: Mapping[str, Any]) -> Shapes:
    channels = [int(each) for each in options["block_out_channels"]]
    latent, layers = int(options["latent_channels"]), int(options["layers_per_block"])
    has_attention = bool(options["mid_block_add_attention"])
    first, deepest = channels[0], channels[-1]
    found = _affine("encoder.conv_in", first, options["in_channels"], 3)
    found |= _levels("encoder.down_blocks", [first, *channels], layers, "downsamplers")
    found |= _middle_of_autoencoder("encoder.mid_block", deepest, has_attention)
    found |= _norm("encoder.conv_norm_out", deepest)
    found |= _affine("encoder.conv_out", 2 * latent, deepest, 3)
    found |= _affine("decoder.conv_in", deepest, latent, 3)
    found |= _middle_of_autoencoder("decoder.mid_block", deepest, has_attention)
    found |= _levels("decoder.up_blocks", [deepest, *channels[::-1]], layers + 1, "upsamplers")
    found |= _norm("decoder.conv_norm_out", first)
    found |= _affine("decoder.conv_out", options["out_channels"], first, 3)
    if options["use_quant_conv"]:
        found |= _affine("quant_conv", 2 * latent, 2 * latent, 1)
    if options["use_post_quant_conv"]:
        found |= _affine("post_quant_conv", latent, latent, 1)
    return found


def _levels(place: str, channels: Sequence[int], layers: int, resampler: str) -> Shapes:
    """Residual blocks of every level; `channels`: what goes in, then what each level gives."""
    found = Shapes()
    for level, outputs in enumerate(channels[1:]):
        for layer in range(layers):
            inputs = outputs if layer else channels[level]
            found |= _resnet(f"{place}.{level}.resnets.{layer}", inputs, outputs)
        if level < len(channels) - 2:
            found |= _affine(f"{place}.{level}.{resampler}.0.conv", outputs, outputs, 3)
    return found


def _middle_of_autoencoder(place: str, channels: int, has_attention: bool) -> Shapes:
    found = _resnet(f"{place}.resnets.0", channels, channels)
    found |= _resnet(f"{place}.resnets.1", channels, channels)
    if has_attention:
        found |= _norm(f"{place}.attentions.0.group_norm", channels)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            found |= _affine(f"{place}.attentions.0.{name}", channels, channels)
    return found

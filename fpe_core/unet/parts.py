"""A UNet as the list of its operations, and which UNets the pass computes correctly."""

from __future__ import annotations

from typing import Any, NamedTuple

from fpe_core.errors import CheckpointError, ParameterError
from fpe_core.unet.family import BLOCKS, MIDDLE_BLOCK, config_differences
from fpe_core.unet.fused import is_plain_resnet

RESNET, TRANSFORMER, KEEP, JOIN, DOWN, UP = range(6)


class UNetParts(NamedTuple):
    """A UNet as the list of its operations, in order.

    Attributes:
        unet: the whole UNet, for what comes before and after the steps.
        steps: (one of the constants above, the module that does it). KEEP stores the hidden state
            for a skip connection, JOIN takes the one stored last.
        multiple: latents whose height and width are multiples of this have no odd size on the way
            down.
    """

    unet: Any
    steps: tuple[tuple[int, Any], ...]
    multiple: int

    @property
    def cross_attentions(self) -> tuple[Any, ...]:
        """The cross-attention layers in order of execution."""
        return tuple(
            block.attn2
            for kind, module in self.steps
            if kind == TRANSFORMER
            for block in module.transformer_blocks
        )

    def resnet_before(self, layer: int) -> int:
        """The number, among `steps`, of the residual block in front of a self-attention layer.

        `layer`: from 1, in order of execution.

        Raises:
            ParameterError: a block of another kind than Stable Diffusion's.
        """
        seen, resnet = 0, 0
        for number, (kind, module) in enumerate(self.steps):
            if kind == RESNET:
                resnet = number
            elif kind == TRANSFORMER:
                seen += len(module.transformer_blocks)
                if seen >= layer:
                    break
        if not is_plain_resnet(self.steps[resnet][1]):
            raise ParameterError(
                f"the residual block in front of layer {layer} is of another kind than Stable "
                "Diffusion's; its residual cannot be exchanged"
            )
        return resnet


def parts_of(unet: Any) -> UNetParts:
    """A UNet2DConditionModel of the Stable Diffusion 1.x, 2.x and XL families, in parts.

    Raises:
        CheckpointError: it is of another kind.
    """
    if found := differences(unet):
        raise CheckpointError(f"the UNet is not of Stable Diffusion's kind: {'; '.join(found)}")
    steps: list[tuple[int, Any]] = [(KEEP, None)]
    for block in unet.down_blocks:
        for layer in _layers(block):
            steps += [*layer, (KEEP, None)]
        if block.downsamplers:
            steps += [*((DOWN, each) for each in block.downsamplers), (KEEP, None)]
    if unet.mid_block is not None:
        first, *others = unet.mid_block.resnets
        steps.append((RESNET, first))
        for transformer, resnet in zip(unet.mid_block.attentions, others, strict=True):
            steps += [(TRANSFORMER, transformer), (RESNET, resnet)]
    for block in unet.up_blocks:
        for layer in _layers(block):
            steps += [(JOIN, None), *layer]
        steps += [(UP, each) for each in block.upsamplers or ()]
    return UNetParts(unet, tuple(steps), 2**unet.num_upsamplers)


def _layers(block: Any) -> list[list[tuple[int, Any]]]:
    """The residual layers of a block, each with the transformer that follows it, if any."""
    transformers = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return [
        [(RESNET, resnet), *([] if transformer is None else [(TRANSFORMER, transformer)])]
        for resnet, transformer in zip(block.resnets, transformers, strict=True)
    ]


def differences(unet: Any) -> list[str]:
    """Why `forward` would not compute this UNet correctly, as text; empty if it would."""
    if type(unet).__name__ != "UNet2DConditionModel":
        return [f"it is a {type(unet).__name__}"]
    found = config_differences(unet.config)
    kinds = _names((*unet.down_blocks, *unet.up_blocks))
    kinds += [] if unet.mid_block is None else _names([unet.mid_block])
    known = (*BLOCKS, MIDDLE_BLOCK)
    found += [f"it has a {kind}" for kind in kinds if kind not in known and not found]
    if any(getattr(block, name, None) for block in unet.up_blocks for name in ("s1", "b1")):
        found.append("FreeU is on")
    if not found:
        transformers = [m for m in unet.modules() if _names([m]) == ["Transformer2DModel"]]
        if not all(_is_plain_transformer(each) for each in transformers):
            found.append("its transformers are of another kind")
    return found


def _names(modules: Any) -> list[str]:
    return list(dict.fromkeys(type(module).__name__ for module in modules))


def _is_plain_transformer(transformer: Any) -> bool:
    return transformer.is_input_continuous and all(
        _names([block]) == ["BasicTransformerBlock"]
        and block.norm_type == "layer_norm"
        and block.attn2 is not None
        and block.pos_embed is None
        and not block.only_cross_attention
        and not hasattr(block, "fuser")
        and block._chunk_size is None
        and _is_plain_attention(block.attn1)
        and _is_plain_attention(block.attn2)
        for block in transformer.transformer_blocks
    )


def _is_plain_attention(attn: Any) -> bool:
    """Whether there is nothing between a layer's input and its projections."""
    extras = (attn.norm_q, attn.norm_k, attn.norm_cross, attn.group_norm, attn.spatial_norm)
    return (
        type(attn.processor).__name__ == "AttnProcessor2_0"
        and all(extra is None for extra in extras)
        and not getattr(attn, "fused_projections", False)
    )

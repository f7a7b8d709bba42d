"""Self-attention maps recorded of the source and injected into its edits (arXiv 2403.03431).

The map softmax(Q K^T / sqrt d) of a target's conditional row is replaced by the source's. As the
map is a function of Q and K alone, attending with the source's Q and K over the target's V is the
same thing, and no map has to be materialised:

    softmax(Q_s K_s^T / sqrt d) V_t  =  scaled_dot_product_attention(Q_s, K_s, V_t)

In each step the source rows run first, and their Q and K are stored (`SourceMaps`); the target rows
then run in as many chunks as memory requires. This module selects the layers and stores the maps;
the pass through the UNet records and injects them (`fpe_core.unet.forward`). Cross-attention is
left alone, unless an experiment asks for it (`EditParameters.replace_cross_attention`): then the
source's map over its own text is injected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpe_core.errors import ParameterError
from fpe_core.parameters import LayerRule, LayersByTokens


@dataclass(frozen=True)
class SelfAttentionLayer:
    """One self-attention layer: its place in the order of execution, from 1, and its size."""

    position: int
    processor_name: str
    tokens: int


def self_attention_layers(
    unet: Any, latent_height: int, latent_width: int
) -> tuple[SelfAttentionLayer, ...]:
    """The self-attention layers of a UNet2DConditionModel in order of execution.

    SD 1.x has sixteen: 1-6 going down, 7 in the middle, 8-16 going up. `tokens` is the number of
    positions each sees for a latent of the given size.
    """
    names = [name for name in unet.attn_processors if name.endswith("attn1.processor")]
    names.sort(key=_order_of_execution)
    level_tokens = _tokens_per_level(len(unet.down_blocks), latent_height, latent_width)
    return tuple(
        SelfAttentionLayer(position, name, level_tokens[_level(name, len(level_tokens))])
        for position, name in enumerate(names, start=1)
    )


def select_layers(
    layers: tuple[SelfAttentionLayer, ...], rule: LayerRule
) -> tuple[SelfAttentionLayer, ...]:
    """The layers a rule names; an empty tuple means that nothing is replaced.

    Raises:
        ParameterError: a range that reaches past the last layer.
    """
    if isinstance(rule, LayersByTokens):
        return tuple(layer for layer in layers if layer.tokens <= rule.max_tokens)
    if rule.last > len(layers):
        raise ParameterError(
            f"layers.last must be at most {len(layers)}, the number of self-attention layers of "
            f"this checkpoint, got {rule.last}"
        )
    return layers[rule.first - 1 : rule.last]


def _order_of_execution(name: str) -> tuple[int, int, int, int]:
    section, _, rest = name.partition(".")
    numbers = [int(part) for part in rest.split(".") if part.isdigit()]
    if section == "mid_block":
        numbers.insert(0, 0)
    block, attention, transformer = numbers[:3]
    return ("down_blocks", "mid_block", "up_blocks").index(section), block, attention, transformer


def _tokens_per_level(levels: int, height: int, width: int) -> list[int]:
    tokens = []
    for _ in range(levels):
        tokens.append(height * width)
        height, width = (height + 1) // 2, (width + 1) // 2
    return tokens


def _level(name: str, levels: int) -> int:
    section, block, *_ = name.split(".")
    if section == "mid_block":
        return levels - 1
    return int(block) if section == "down_blocks" else levels - 1 - int(block)


class AttentionMap(NamedTuple):
    """The query and key that define the map of one attention layer, for some UNet rows.

    Attributes:
        query: (rows, tokens, width).
        key: (rows, tokens, width); for cross-attention (rows, text tokens, width).
    """

    query: Tensor
    key: Tensor


class SourceMaps:
    """The maps of the current step's source rows, layer by layer.

    Attributes:
        attentions: the layers whose maps are recorded, as indices, from 0, among all attentions of
            the UNet in order of execution: every self-attention is followed by its cross-attention.
    """

    def __init__(
        self, layers: tuple[SelfAttentionLayer, ...], *, cross_attention: bool = False
    ) -> None:
        """`cross_attention`: also record the maps of the cross-attention after each layer."""
        kinds = (0, 1) if cross_attention else (0,)
        self.attentions = tuple(
            2 * (layer.position - 1) + kind for layer in layers for kind in kinds
        )
        self._chunks: list[tuple[AttentionMap, ...]] = []

    def clear(self) -> None:
        """Drops the recorded maps, before the source rows of the next step record theirs."""
        self._chunks = []

    def record(self, maps: tuple[AttentionMap, ...]) -> None:
        """Adds the maps of the next sources, one for each layer."""
        self._chunks.append(maps)

    def of(self, sources: Tensor) -> tuple[AttentionMap, ...]:
        """The maps of these sources (int64, in the order of recording), one for each layer."""
        if len(self._chunks) > 1:
            joined = (
                AttentionMap(torch.cat([m.query for m in parts]), torch.cat([m.key for m in parts]))
                for parts in zip(*self._chunks, strict=True)
            )
            self._chunks = [tuple(joined)]
        return tuple(AttentionMap(m.query[sources], m.key[sources]) for m in self._chunks[0])

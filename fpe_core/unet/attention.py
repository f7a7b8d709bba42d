"""The attention layers of a UNet, and which of them a rule names.

An attention is counted from 0 among all of them in order of execution: every self-attention is
followed by its cross-attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fpe_core.errors import ParameterError
from fpe_core.layer_rules import (
    PARTS,
    LayerRule,
    LayersByLevel,
    LayersByPart,
    LayersByTokens,
    require_last,
)


@dataclass(frozen=True)
class SelfAttentionLayer:
    """One self-attention layer.

    Attributes:
        position: its place in the order of execution, from 1.
        processor_name: of its processor in the UNet.
        tokens: positions of the latent grid that it sees.
        level: by how much the grid is reduced there in each direction: 1, 2, 4, 8, ...
        part: "down", "middle" or "up".
    """

    position: int
    processor_name: str
    tokens: int
    level: int
    part: str

    @property
    def attention(self) -> int:
        """Its number among all attentions, from 0."""
        return 2 * (self.position - 1)

    @property
    def cross_attention(self) -> int:
        """The number of the cross-attention behind it."""
        return self.attention + 1


def self_attention_layers(
    unet: Any, latent_height: int, latent_width: int
) -> tuple[SelfAttentionLayer, ...]:
    """The self-attention layers of a UNet2DConditionModel in order of execution.

    SD 1.x has sixteen: 1-6 going down, 7 in the middle, 8-16 going up. `tokens` is the number of
    positions each sees for a latent of the given size.
    """
    names = [name for name in unet.attn_processors if name.endswith("attn1.processor")]
    names.sort(key=_order_of_execution)
    grids = level_grids(unet, latent_height, latent_width)
    level_tokens = [height * width for height, width in grids]
    found = []
    for position, name in enumerate(names, start=1):
        level = _level(name, len(level_tokens))
        size = level_tokens[level]
        found.append(SelfAttentionLayer(position, name, size, 2**level, _part(name)))
    return tuple(found)


def level_grids(unet: Any, latent_height: int, latent_width: int) -> list[tuple[int, int]]:
    """(height, width) of the latent grid at each of the UNet's levels, the largest first."""
    grids, (height, width) = [], (latent_height, latent_width)
    for _ in range(len(unet.down_blocks)):
        grids.append((height, width))
        height, width = (height + 1) // 2, (width + 1) // 2
    return grids


def select_layers(
    layers: tuple[SelfAttentionLayer, ...], rule: LayerRule
) -> tuple[SelfAttentionLayer, ...]:
    """The layers a rule names; an empty tuple means that nothing is replaced.

    Raises:
        ParameterError: a range that reaches past the last layer, of all or of the part.
    """
    if isinstance(rule, LayersByTokens):
        return tuple(layer for layer in layers if layer.tokens <= rule.max_tokens)
    if isinstance(rule, LayersByLevel):
        return tuple(layer for layer in layers if layer.level >= rule.level)
    if isinstance(rule, LayersByPart):
        layers = tuple(layer for layer in layers if layer.part == rule.part)
        if rule.first > len(layers) or (rule.last or 0) > len(layers):
            raise ParameterError(
                f"layers {rule}: this checkpoint has {len(layers)} in that part ({rule.part})"
            )
        return layers[rule.first - 1 : rule.last]
    require_last(rule, len(layers))
    return layers[rule.first - 1 : rule.last]


def _order_of_execution(name: str) -> tuple[int, int, int, int]:
    section, _, rest = name.partition(".")
    numbers = [int(part) for part in rest.split(".") if part.isdigit()]
    if section == "mid_block":
        numbers.insert(0, 0)
    block, attention, transformer = numbers[:3]
    return PARTS.index(_part(section)), block, attention, transformer


def _part(name: str) -> str:
    return {"down": "down", "mid": "middle", "up": "up"}[name.partition("_")[0]]


def _level(name: str, levels: int) -> int:
    section, block, *_ = name.split(".")
    if section == "mid_block":
        return levels - 1
    return int(block) if section == "down_blocks" else levels - 1 - int(block)

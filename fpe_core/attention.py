"""Self-attention maps taken from the source and given to the target (FPE, arXiv 2403.03431).

The map softmax(Q K^T / sqrt d) of a target's conditional row is replaced by the source's. As the
map is a function of Q and K alone, attending with the source's Q and K over the target's V is the
same thing, and no map has to be materialised:

    softmax(Q_s K_s^T / sqrt d) V_t  =  scaled_dot_product_attention(Q_s, K_s, V_t)

Source rows run first in a step and leave their Q and K behind; target rows then run in as many
chunks as memory asks for. Cross-attention is never touched, except where an experiment asks for it
(`EditParameters.replace_cross_attention`): there the map is that of the source over its own text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from fpe_core.attend import attend
from fpe_core.errors import CheckpointError, ParameterError
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


@dataclass
class _SourceMaps:
    """Queries and keys of the current step's source rows, per layer: (sources, tokens, width)."""

    queries: dict[str, list[Tensor]] = field(default_factory=dict)
    keys: dict[str, list[Tensor]] = field(default_factory=dict)


class _LastMapRecorded(Exception):  # noqa: N818 - a way out, no error
    """Leaves a forward pass of which only the maps are wanted; never leaves this module."""


class MapReplacement:
    """Puts map-replacing processors on the chosen layers of a UNet2DConditionModel and takes them
    off.

        with MapReplacement(unet, layers) as maps:
            maps.forget()
            with maps.recording(first_row=0):
                unet(source rows)
            with maps.injecting(first_row=n_unconditional, sources=index):
                unet(target rows)

    Attributes:
        layers: the chosen ones, in order of execution.

    Outside `recording` and `injecting` every layer runs the checkpoint's own processor. Whatever
    happens inside the `with`, the checkpoint's own processors are back afterwards.
    """

    def __init__(
        self,
        unet: Any,
        layers: tuple[SelfAttentionLayer, ...],
        *,
        cross_attention: bool = False,
    ) -> None:
        """`cross_attention` also replaces the maps of the cross-attention beside each layer."""
        self._unet = unet
        self.layers = layers
        self._names = {layer.processor_name for layer in layers}
        self._last_name = layers[-1].processor_name if layers else ""
        if cross_attention:
            self._last_name = self._last_name.replace("attn1", "attn2")
            self._names |= {name.replace("attn1", "attn2") for name in self._names}
        self._own_processors: dict[str, Any] = {}
        self._maps = _SourceMaps()
        self._mode = "own"
        self._only_maps = False
        self._first_row = 0
        self._sources: Tensor | None = None
        self._pending: dict[str, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> Self:
        self._own_processors = dict(self._unet.attn_processors)
        self._unet.set_attn_processor(
            {
                name: _Processor(self, name, own) if name in self._names else own
                for name, own in self._own_processors.items()
            }
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._unet.set_attn_processor(dict(self._own_processors))
        self.forget()

    def forget(self) -> None:
        """Drops what was recorded: the next step's source rows start afresh."""
        self._maps = _SourceMaps()

    @contextmanager
    def recording(self, first_row: int, *, only_maps: bool = False) -> Iterator[None]:
        """Rows from `first_row` on are source rows, in order of sources; their Q and K are kept.

        With `only_maps` the forward pass ends at the last layer, once its Q and K are there, and
        with it the body of the `with`: no output comes out. A forward pass that raises anything
        else leaves nothing behind, so that it can be run again in halves.
        """
        self._pending, self._only_maps = {}, only_maps
        with suppress(_LastMapRecorded), self._in_mode("recording", first_row, None):
            yield
        for name, (query, key) in self._pending.items():
            self._maps.queries.setdefault(name, []).append(query)
            self._maps.keys.setdefault(name, []).append(key)
        self._pending = {}

    @contextmanager
    def injecting(self, first_row: int, sources: Tensor) -> Iterator[None]:
        """Row `first_row + i` attends with the recorded Q and K of source `sources[i]`."""
        with self._in_mode("injecting", first_row, sources):
            yield

    @contextmanager
    def _in_mode(self, mode: str, first_row: int, sources: Tensor | None) -> Iterator[None]:
        self._mode, self._first_row, self._sources = mode, first_row, sources
        try:
            yield
        finally:
            self._mode, self._first_row, self._sources = "own", 0, None

    def _attend(self, name: str, attn: Any, hidden: Tensor, context: Tensor) -> Tensor:
        """Attention of all rows from hidden, (rows, tokens, channels), over context."""
        first = self._first_row
        if self._mode == "recording":
            query, key = attn.to_q(hidden), attn.to_k(context)
            self._pending[name] = (query[first:], key[first:])
            if self._only_maps and name == self._last_name:
                raise _LastMapRecorded
        else:
            source_query, source_key = self._recorded(name)
            if first == hidden.shape[0]:
                query, key = attn.to_q(hidden), attn.to_k(context)
            elif first == 0:
                query, key = source_query, source_key
            else:  # a replaced row needs neither to_q nor to_k of its own
                query = torch.cat([attn.to_q(hidden[:first]), source_query])
                key = torch.cat([attn.to_k(context[:first]), source_key])
        return attend(attn, hidden, query, key, attn.to_v(context))

    def _recorded(self, name: str) -> tuple[Tensor, Tensor]:
        queries, keys = self._maps.queries[name], self._maps.keys[name]
        if len(queries) > 1:  # the source rows ran in several chunks
            queries[:], keys[:] = [torch.cat(queries)], [torch.cat(keys)]
        if self._sources is None or self._sources.numel() == 0:
            return queries[0][:0], keys[0][:0]
        return queries[0][self._sources], keys[0][self._sources]


class _Processor:
    """A diffusers attention processor: the checkpoint's own one, except while maps are replaced."""

    def __init__(self, replacement: MapReplacement, name: str, own: Any) -> None:
        self._replacement = replacement
        self._name = name
        self._own = own

    @property
    def tells_rows_apart(self) -> bool:
        """Whether rows with one input have several outputs here (see `fpe_core.unet_pass`)."""
        return self._replacement._mode != "own"

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if self._replacement._mode == "own":
            own: Tensor = self._own(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs
            )
            return own
        if hidden_states.ndim != 3 or attention_mask is not None or attn.norm_q is not None:
            raise CheckpointError(
                f"attention layer {self._name} is not of Stable Diffusion 1.x's kind; "
                "its map cannot be replaced"
            )
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        return self._replacement._attend(self._name, attn, hidden_states, context)

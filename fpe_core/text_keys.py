"""Keys and values of the prompts in the cross-attention layers: once a call, not once a step.

They are linear maps of the prompts' embeddings and of nothing else, so a step only has to pick the
rows it wants. They live for one call and take

    2 * tokens * width of all cross-attention layers * bytes of a number

per distinct prompt: 3.8 MB for Stable Diffusion 1.5 in half precision. A call with so many prompts
that this passes 256 MiB computes them at every step, as diffusers does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from fpe_core.attend import attend

_MOST_BYTES = 256 * 2**20


class TextKeys:
    """Puts processors that know the prompts on a UNet's cross-attention layers, and takes them off.

        with TextKeys(unet, embeddings) as keys:
            with keys.of_rows(prompts):
                unet(sample, timestep, encoder_hidden_states=embeddings[prompts])

    A layer whose processor is not diffusers' ordinary one keeps it.
    """

    def __init__(self, unet: Any, embeddings: Tensor, *, most_bytes: int = _MOST_BYTES) -> None:
        """
        Args:
            unet: a UNet2DConditionModel.
            embeddings: (distinct prompts, tokens, width).
            most_bytes: bound on what is kept.
        """
        self._unet = unet
        self._embeddings = embeddings
        self._most_bytes = most_bytes
        self._own_processors: dict[str, Any] = {}
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        self._prompts: Tensor | None = None

    def __enter__(self) -> Self:
        self._own_processors = dict(self._unet.attn_processors)
        layers = {
            name: self._unet.get_submodule(name.removesuffix(".processor"))
            for name, own in self._own_processors.items()
            if name.endswith("attn2.processor") and type(own).__name__ == "AttnProcessor2_0"
        }
        if self._bytes_in(layers.values()) <= self._most_bytes:
            processors = {
                name: _Processor(self, name, self._own_processors[name]) for name in layers
            }
            self._unet.set_attn_processor({**self._own_processors, **processors})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._unet.set_attn_processor(dict(self._own_processors))
        self._kept = {}

    @contextmanager
    def of_rows(self, prompts: Tensor) -> Iterator[None]:
        """The rows that go through the UNet have these prompts: (rows,), index of embeddings."""
        self._prompts = prompts
        try:
            yield
        finally:
            self._prompts = None

    def _bytes_in(self, layers: Any) -> int:
        width = sum(attn.to_k.out_features + attn.to_v.out_features for attn in layers)
        prompts, tokens, _ = self._embeddings.shape
        return int(prompts * tokens * width * self._embeddings.element_size())

    def _of(self, name: str, attn: Any, prompts: Tensor) -> tuple[Tensor, Tensor]:
        if name not in self._kept:
            self._kept[name] = attn.to_k(self._embeddings), attn.to_v(self._embeddings)
        keys, values = self._kept[name]
        return keys[prompts], values[prompts]


class _Processor:
    """diffusers' AttnProcessor2_0 with keys and values that are already there."""

    def __init__(self, keys: TextKeys, name: str, own: Any) -> None:
        self._keys = keys
        self._name = name
        self._own = own

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        prompts = self._keys._prompts
        if prompts is None or attention_mask is not None or not _is_plain(attn):
            own: Tensor = self._own(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs
            )
            return own
        key, value = self._keys._of(self._name, attn, prompts)
        return attend(attn, hidden_states, attn.to_q(hidden_states), key, value)


def _is_plain(attn: Any) -> bool:
    """Whether the layer is Stable Diffusion's: nothing between its input and its projections."""
    extras = (attn.norm_q, attn.norm_k, attn.norm_cross, attn.group_norm, attn.spatial_norm)
    return all(extra is None for extra in extras)

"""Keys and values of the prompts in the cross-attention layers: once a call, not once a step.

They are linear maps of the prompts' embeddings and of nothing else, so a step only has to pick the
rows it wants. They live for one call and take

    2 * tokens * width of all cross-attention layers * bytes of a number

per distinct prompt: 3.8 MB for Stable Diffusion 1.5 in half precision. A call with so many prompts
that this passes 256 MiB computes them at every step, as diffusers does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

_MOST_BYTES = 256 * 2**20


class PromptRows(NamedTuple):
    """The prompts of the rows that go through the UNet together.

    Attributes:
        embeddings: (rows, tokens, width).
        keys: of every cross-attention in order of execution its keys and values, each (rows,
            tokens, width of the layer); empty where they are still to be computed.
    """

    embeddings: Tensor
    keys: tuple[tuple[Tensor, Tensor], ...]


class TextKeys:
    """The prompts of one call, with their keys and values where these are few enough to keep."""

    def __init__(
        self, layers: Sequence[Any], embeddings: Tensor, *, most_bytes: int = _MOST_BYTES
    ) -> None:
        """
        Args:
            layers: the cross-attention layers in order of execution.
            embeddings: (distinct prompts, tokens, width).
            most_bytes: bound on what is kept.
        """
        self._embeddings = embeddings
        width = sum(attn.to_k.out_features + attn.to_v.out_features for attn in layers)
        needed = embeddings.shape[0] * embeddings.shape[1] * width * embeddings.element_size()
        self._keys = (
            tuple((attn.to_k(embeddings), attn.to_v(embeddings)) for attn in layers)
            if needed <= most_bytes
            else ()
        )

    def of_rows(self, prompts: Tensor) -> PromptRows:
        """Of rows with these prompts: (rows,) int64, index of the embeddings."""
        return PromptRows(
            self._embeddings[prompts],
            tuple((key[prompts], value[prompts]) for key, value in self._keys),
        )

"""The prompts of a call: their embeddings, and their keys and values in the cross-attention layers.

Each distinct prompt is encoded once (`encode_prompts`), and the part that exceeds the text
encoder's window is reported. Its keys and values depend on its embedding alone, so they are
computed once per call (`TextKeys`), and a step only picks the rows it needs. They are kept for one
call and take

    2 * tokens * width of all cross-attention layers * bytes per number

per distinct prompt: 3.8 MB for Stable Diffusion 1.5 in half precision. If a call needs more than
256 MiB, they are computed at every step instead, as in diffusers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpe_core.size_ids import SizeIds
from fpe_core.unet.text_encoders import TextEncoders

_log = logging.getLogger(__name__)
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class EncodedPrompts:
    """Distinct prompts, encoded once each.

    Attributes:
        embeddings: (prompts, tokens, width), dtype and device of the text encoder.
        places: a prompt with the size it is for to its row in `embeddings`; see `of`.
        truncated: prompt to the part of it that exceeded the encoder's window; absent if all
            fitted.
        pooled: (prompts, width), of Stable Diffusion XL; None for other models, which are told no
            sizes either.
        sizes: (prompts, 6), float32, the `SizeIds` of each; None as `pooled`.
    """

    embeddings: Tensor
    places: Mapping[tuple[str, SizeIds | None], int]
    truncated: Mapping[str, str]
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def of(self, prompt: str, size: SizeIds | None = None) -> int:
        """The row of a prompt for a picture of that size, which only XL looks at."""
        return self.places[prompt, None if self.pooled is None else size]

    def and_named(self, embeddings: Tensor, names: Sequence[str]) -> EncodedPrompts:
        """With further embeddings, (names, tokens, width), behind all others, for a model that is
        told no sizes."""
        assert self.pooled is None
        count = len(self.embeddings)
        named: dict[tuple[str, SizeIds | None], int] = {
            (name, None): count + place for place, name in enumerate(names)
        }
        both = torch.cat([self.embeddings, embeddings.to(self.embeddings)])
        return replace(self, embeddings=both, places={**self.places, **named})

    def and_like(self, embeddings: Tensor, like: Sequence[int]) -> EncodedPrompts:
        """With further embeddings, (n, tokens, width), behind all others; what comes beside them is
        that of the n prompts `like`."""
        rows = list(like)
        return replace(
            self,
            embeddings=torch.cat([self.embeddings, embeddings.to(self.embeddings)]),
            pooled=None if self.pooled is None else torch.cat([self.pooled, self.pooled[rows]]),
            sizes=None if self.sizes is None else torch.cat([self.sizes, self.sizes[rows]]),
        )


def encode_prompts(
    encoders: TextEncoders, prompts: Sequence[tuple[str, SizeIds | None]]
) -> EncodedPrompts:
    """Encodes each distinct prompt once, padded to the encoder's window (77 tokens), or to a
    multiple of it.

    A prompt past the last window is cut there; the rest is logged and returned in `truncated`.

    Args:
        prompts: with the size of the picture each is for. Models that are told no sizes take a
            prompt as one, whatever the sizes; XL leaves out what is for no picture.

    Raises:
        PromptError: a prompt that is not text.
    """
    truncated = {}
    texts = list(dict.fromkeys(text for text, _ in prompts))
    for text in texts:
        if rest := encoders.tokenize(text).rest:
            truncated[text] = rest
            _log.warning(
                "prompt %r exceeds %d tokens; not seen by the model: %r",
                text,
                encoders.most_tokens,
                rest,
            )
    embeddings, pooled = encoders.encode(texts)
    if pooled is None:
        return EncodedPrompts(
            embeddings, {(text, None): row for row, text in enumerate(texts)}, truncated
        )
    distinct = list(dict.fromkeys(each for each in prompts if each[1] is not None))
    row_of = {text: row for row, text in enumerate(texts)}
    rows = torch.tensor([row_of[text] for text, _ in distinct], device=embeddings.device)
    sizes = [size for _, size in distinct]
    return EncodedPrompts(
        embeddings[rows],
        {each: row for row, each in enumerate(distinct)},
        truncated,
        pooled[rows],
        torch.tensor(sizes, dtype=torch.float32, device=embeddings.device).reshape(-1, 6),
    )


class PromptRows(NamedTuple):
    """The prompts of the rows that go through the UNet together.

    Attributes:
        embeddings: (rows, tokens, width).
        keys: (keys, values) of every cross-attention in order of execution, each (rows, tokens,
            width of the layer); empty if each step computes them.
        added: (rows, width), what is added to the timestep's embedding, see `embed_added`; None:
            nothing.
    """

    embeddings: Tensor
    keys: tuple[tuple[Tensor, Tensor], ...]
    added: Tensor | None = None


class TextKeys:
    """The prompts of one call, with their keys and values if these are small enough to keep."""

    def __init__(
        self,
        layers: Sequence[Any],
        embeddings: Tensor,
        *,
        added: Tensor | None = None,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        """
        Args:
            layers: the cross-attention layers in order of execution.
            embeddings: (distinct prompts, tokens, width).
            added: (distinct prompts, width), see `PromptRows`.
            most_bytes: upper limit of the memory for keys and values.
        """
        self._embeddings = embeddings
        self._added = added
        self._layers = tuple(layers)
        width = sum(attn.to_k.out_features + attn.to_v.out_features for attn in layers)
        needed = embeddings.shape[0] * embeddings.shape[1] * width * embeddings.element_size()
        self._keys = (
            tuple((attn.to_k(embeddings), attn.to_v(embeddings)) for attn in layers)
            if needed <= most_bytes
            else ()
        )

    def put(self, prompts: Tensor, embeddings: Tensor) -> None:
        """Other embeddings in the place of some.

        Args:
            prompts: (prompts,) int64, indices of the embeddings.
            embeddings: (prompts, tokens, width).
        """
        self._embeddings[prompts] = embeddings.to(self._embeddings)
        for layer, (key, value) in zip(self._layers, self._keys, strict=False):  # or there are none
            key[prompts] = layer.to_k(self._embeddings[prompts])
            value[prompts] = layer.to_v(self._embeddings[prompts])

    def of_rows(self, prompts: Tensor) -> PromptRows:
        """The prompts of some rows; `prompts`: (rows,) int64, indices of the embeddings."""
        return PromptRows(
            self._embeddings[prompts],
            tuple((key[prompts], value[prompts]) for key, value in self._keys),
            None if self._added is None else self._added[prompts],
        )

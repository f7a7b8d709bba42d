"""Prompts to embeddings, by a checkpoint's text encoder or, of Stable Diffusion XL, by its two.

Stable Diffusion 1.x and 2.x see the last layer of CLIP's text encoder, behind its norm. XL sees the
last but one of both encoders, without the norm, side by side; and of the second the pooled
embedding, which is added to the timestep's.

A prompt that is longer than the encoders' window is cut there, or encoded in several windows, one
behind the other (`TextSettings`). All prompts of a call then have the same number of windows:
shorter ones are repeated, which changes nothing for them, because a softmax over the same keys
twice halves each weight and sums the same values up again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpe_core.errors import PromptError
from fpe_core.text_settings import AS_IT_IS, TextSettings

_MOST_PROMPTS = 128
"""How many prompts go through a text encoder at once; its memory grows with them."""
_MOST_WINDOWS = 4


class Tokenized(NamedTuple):
    """A prompt as a text encoder takes it.

    Attributes:
        windows: token ids, in each exactly as many as the encoder's window has places.
        rest: the text that did not fit; "" if all did.
    """

    windows: list[list[int]]
    rest: str


@dataclass(frozen=True)
class TextEncoders:
    """The text encoders of a checkpoint.

    Attributes:
        tokenizers, encoders: transformers' own objects, one each or, of XL, two.
        empty_is_zero: the empty prompt is an embedding of zeros instead of what the encoders make
            of it, as XL was trained for its unconditional rows (`force_zeros_for_empty_prompt`).
        settings: how they are used.
    """

    tokenizers: tuple[Any, ...]
    encoders: tuple[Any, ...]
    empty_is_zero: bool = False
    settings: TextSettings = AS_IT_IS

    @property
    def pools(self) -> bool:
        """Whether there is a pooled embedding beside those of the tokens."""
        return len(self.encoders) > 1

    @property
    def most_tokens(self) -> int:
        """How many tokens of a prompt are seen, the special ones included."""
        return int(self.tokenizers[0].model_max_length) * self._most_windows

    @property
    def _most_windows(self) -> int:
        return _MOST_WINDOWS if self.settings.long_prompts == "windows" else 1

    def tokenize(self, prompt: object) -> Tokenized:
        """By the first tokenizer. Raises PromptError for a prompt that is not text."""
        return _tokenize(self.tokenizers[0], prompt, self._most_windows)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The embeddings of prompts, (prompts, tokens, width), and pooled ones of their first
        windows, (prompts, width); None for the latter if the checkpoint has none.

        Any number of prompts takes the same memory, but for the embeddings themselves.
        """
        parts, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            windows = [_tokenize(tokenizer, each, self._most_windows).windows for each in prompts]
            ids = [ids for each in windows for ids in each]
            embeddings, pooled = self._encoded(encoder, ids, int(tokenizer.model_max_length))
            if len(ids) != len(prompts):
                embeddings, pooled = _of_prompts(
                    [len(each) for each in windows], embeddings, pooled
                )
            parts.append(embeddings)
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self.empty_is_zero and "" in prompts:
            is_empty = torch.tensor([prompt == "" for prompt in prompts], device=joined.device)
            joined = joined.masked_fill(is_empty[:, None, None], 0.0)
            pooled = None if pooled is None else pooled.masked_fill(is_empty[:, None], 0.0)
        return joined, pooled if self.pools else None

    def _encoded(
        self, encoder: Any, ids: Sequence[Sequence[int]], window: int
    ) -> tuple[Tensor, Tensor | None]:
        device = next(encoder.parameters()).device
        if not ids:
            width, pooled = int(encoder.config.hidden_size), int(encoder.config.projection_dim)
            return (
                torch.zeros((0, window, width), device=device),
                torch.zeros((0, pooled), device=device),
            )
        made, pools = [], []
        for first in range(0, len(ids), _MOST_PROMPTS):
            tokens = torch.tensor(ids[first : first + _MOST_PROMPTS], device=device)
            if not self.pools and not self.settings.clip_skip:
                made.append(encoder(tokens)[0])
                continue
            seen = encoder(tokens, output_hidden_states=True)
            if self.pools:
                made.append(seen.hidden_states[-2 - self.settings.clip_skip])
            else:
                last_norm = getattr(encoder, "text_model", encoder).final_layer_norm
                made.append(last_norm(seen.hidden_states[-1 - self.settings.clip_skip]))
            if "text_embeds" in seen:  # of an encoder with a projection: the second one
                pools.append(seen.text_embeds)
        whole = made[0] if len(made) == 1 else torch.cat(made)
        return whole, torch.cat(pools) if pools else None


def _of_prompts(
    counts: Sequence[int], windows: Tensor, pooled: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The windows of each prompt one behind the other, in turn until all have as many: (prompts,
    tokens of all windows, width); and the pooled embedding of its first window."""
    longest = math.lcm(*counts)
    first, order, firsts = 0, [], []
    for count in counts:
        order += [first + place % count for place in range(longest)]
        firsts.append(first)
        first += count
    joined = windows[order].unflatten(0, (len(counts), longest)).flatten(1, 2)
    return joined, None if pooled is None else pooled[firsts]


def _tokenize(tokenizer: Any, prompt: object, most_windows: int) -> Tokenized:
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt must be text, got {prompt!r}")
    inner = int(tokenizer.model_max_length) - 2
    start, *own, end = token_ids(tokenizer, prompt)
    windows = []
    for first in range(0, min(max(len(own), 1), most_windows * inner), inner):
        part = own[first : first + inner]
        padding = [tokenizer.pad_token_id] * (inner - len(part))
        windows.append([start, *part, end, *padding])
    rest = own[inner * most_windows :]
    return Tokenized(windows, tokenizer.decode(rest).strip() if rest else "")


def token_ids(tokenizer: Any, prompt: str) -> list[int]:
    """All token ids of a prompt, however many, with the first and the last special one.

    Raises:
        PromptError: it cannot be tokenized.
    """
    try:
        found = tokenizer(prompt, truncation=False, verbose=False).input_ids
    except (UnicodeError, TypeError, ValueError) as error:
        raise PromptError(f"prompt {prompt!r} cannot be tokenized: {error}") from error
    return _with_every_vector(tokenizer, found)


def _with_every_vector(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The token ids of a prompt with every vector of its embeddings of textual inversion.

    An embedding <x> of several vectors is saved as the tokens <x>, <x>_1, <x>_2, ..., and a prompt
    that says <x> means all of them (diffusers' TextualInversionLoaderMixin). A prompt that writes
    them out itself stays as it is. What is the token <x> in a text is for the tokenizer to say:
    CLIP's takes <X> for it as well, and of two tokens that fit the longer one.
    """
    added = tokenizer.get_added_vocab()
    further: dict[int, list[int]] = {}
    for token, number in added.items():
        numbered = (f"{token}_{place}" for place in itertools.count(1))
        names = itertools.takewhile(added.__contains__, numbered)
        further[number] = [added[name] for name in names]
    found: list[int] = []
    for place, number in enumerate(ids):
        others = further.get(number, [])
        written_out = list(ids[place + 1 : place + 2]) == others[:1]
        found += [number] if written_out else [number, *others]
    return found

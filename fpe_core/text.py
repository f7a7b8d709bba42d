"""Prompts to text embeddings, with a word about what did not fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fpe_core.errors import PromptError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedPrompts:
    """Distinct prompts, encoded once each.

    Attributes:
        embeddings: (distinct prompts, tokens, width), dtype and device of the text encoder.
        index: prompt to its row in `embeddings`.
        truncated: prompt to the part of it that exceeded the encoder's window; absent if all
        fitted.
    """

    embeddings: Tensor
    index: dict[str, int]
    truncated: dict[str, str]


def encode_prompts(tokenizer: Any, text_encoder: Any, prompts: Sequence[str]) -> EncodedPrompts:
    """Encodes each distinct prompt once, padded to the encoder's window (77 tokens for SD 1.x).

    A prompt past the window is cut there; the rest is logged and returned in `truncated`.

    Raises:
        PromptError: a prompt that is no text.
    """
    distinct = list(dict.fromkeys(prompts))
    token_ids, truncated = [], {}
    for prompt in distinct:
        ids, rest = _tokenize(tokenizer, prompt)
        token_ids.append(ids)
        if rest:
            truncated[prompt] = rest
            _log.warning(
                "prompt %r exceeds %d tokens; not seen by the model: %r",
                prompt,
                tokenizer.model_max_length,
                rest,
            )
    device = next(text_encoder.parameters()).device
    if not distinct:
        width = (0, int(tokenizer.model_max_length), int(text_encoder.config.hidden_size))
        return EncodedPrompts(torch.zeros(width, device=device), {}, {})
    with torch.inference_mode():
        embeddings = text_encoder(torch.tensor(token_ids, device=device))[0]
    return EncodedPrompts(embeddings, {p: i for i, p in enumerate(distinct)}, truncated)


def _tokenize(tokenizer: Any, prompt: object) -> tuple[list[int], str]:
    """Token ids of exactly the window's length, and the text that did not fit ("" if all did)."""
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt must be text, got {prompt!r}")
    window = int(tokenizer.model_max_length)
    try:
        everything = tokenizer(prompt, truncation=False, verbose=False).input_ids
        ids = tokenizer(prompt, padding="max_length", max_length=window, truncation=True).input_ids
    except (UnicodeError, TypeError, ValueError) as error:
        raise PromptError(f"prompt {prompt!r} cannot be tokenized: {error}") from error
    rest = everything[window - 1 : -1]  # the window's last place is the end token's
    return list(ids), tokenizer.decode(rest).strip() if rest else ""

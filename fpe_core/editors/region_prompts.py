"""Prompts of what is inside a mask and of what is outside, and their tokens.

Of a text encoder's window of W tokens, n = (W - 1) // 2 are of what is inside (1 .. n), and n of
what is outside (n + 1 .. 2 n). The first token and the last ones belong to neither.
"""

from __future__ import annotations

from collections.abc import Hashable
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np

from fpe_core.editors.words import Tokens


class RegionPrompts(NamedTuple):
    """What is inside a mask and outside of it, in the source and in the edit; "" if not said."""

    source_inside: str = ""
    source_outside: str = ""
    target_inside: str = ""
    target_outside: str = ""

    def or_else(self, others: RegionPrompts) -> RegionPrompts:
        """These, and the others where they say nothing."""
        return RegionPrompts(
            *(own if own.strip() else other for own, other in zip(self, others, strict=True))
        )


def half_window(window: int) -> int:
    """n: how many tokens of a window are of each region."""
    return (window - 1) // 2


def inversion_key(
    prompts: RegionPrompts, mask: np.ndarray[Any, np.dtype[np.bool_]] | None
) -> Hashable:
    """What tells the inversions of one source apart: equal ones are made once."""
    pixels = None if mask is None else (mask.shape, mask.tobytes())
    return prompts.source_inside, prompts.source_outside, pixels


def shared_tokens(tokens: Tokens, window: int, source: str, target: str) -> list[int]:
    """Places of the tokens of a target's region prompt that its source's has too, 1 .. n.

    Those in the equal blocks of `difflib.SequenceMatcher` over both windows of token ids, padded
    with the end token; only tokens of words count, not the first and the last one.
    """
    one, other = _window(tokens, window, source), _window(tokens, window, target)
    blocks = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
    matched = {place for _, at, size in blocks for place in range(at, at + size)}
    words = min(len(tokens(target)) - 2, half_window(window))
    return [place for place in range(1, words + 1) if place in matched]


def _window(tokens: Tokens, window: int, prompt: str) -> list[int]:
    """The token ids that a text encoder sees, padded with the end token."""
    ids = list(tokens(prompt))
    return [*ids[: window - 1], *[ids[-1]] * (window - len(ids[: window - 1]))]


def beyond_half(tokens: Tokens, window: int, prompt: str) -> list[int]:
    """The token ids of a region prompt that have no place in its half of the window."""
    return list(tokens(prompt))[1:-1][half_window(window) :]

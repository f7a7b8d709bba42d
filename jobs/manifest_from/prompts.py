"""Prompts and words as PIE-Bench writes them."""

from __future__ import annotations

import json
import re
from typing import Any

_MARKED = re.compile(r"\[([^\[\]]*)\]")


def without_marks(prompt: Any) -> str | None:
    """A prompt without the [brackets] round the words that change; None without words.

    A bracket without its other half marks nothing, and stays.
    """
    if not isinstance(prompt, str):
        return None
    before = None
    while before != prompt:
        before, prompt = prompt, _MARKED.sub(r"\1", prompt)
    return " ".join(prompt.split()) or None


def two_words(value: Any) -> list[str] | None:
    """The word of the source and that of the target in "source target"; None for "".

    Raises ValueError for any other number of words.
    """
    words = value.split() if isinstance(value, str) else []
    if value not in (None, "") and len(words) != 2:
        raise ValueError(f"blended_word {value!r} is not two words")
    return words or None


def pairs_of(text: str | None) -> list[list[str]]:
    """The pairs in '["source,target", ...]', as PIE-Bench++ writes them.

    Raises ValueError for anything else.
    """
    if not (text or "").strip():
        return []
    try:
        items = json.loads(str(text))
    except ValueError:
        items = None
    pairs = [str(item).split(",") for item in items] if isinstance(items, list) else [[]]
    pairs = [[word.strip() for word in pair] for pair in pairs]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"blended_words {text!r} are not pairs of words")
    return pairs

"""A byte-level CLIP vocabulary whose merges make every word of the grammar one token."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from fpe_core.still_life.scene import grammar_words

WORD_END = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")

Pair = tuple[str, str]


def learn() -> tuple[dict[str, int], list[Pair]]:
    """The vocabulary (token to id) and the merges in order of rank.

    Byte-pair encoding run on the grammar until each word is whole: since encoding replays the
    merges in the order in which they were learned, every grammar word comes out as one token. Any
    other text falls back to shorter pieces, down to single bytes.
    """
    words = [[*word[:-1], word[-1] + WORD_END] for word in grammar_words()]
    merges: list[Pair] = []
    while any(len(word) > 1 for word in words):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [_merge(word, best) for word in words]
    bytes_ = _byte_characters()
    tokens = [*bytes_, *(b + WORD_END for b in bytes_), *dict.fromkeys(a + b for a, b in merges)]
    return {token: index for index, token in enumerate([*tokens, *SPECIAL])}, merges


def _merge(word: list[str], pair: Pair) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in its order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(len(hidden))]

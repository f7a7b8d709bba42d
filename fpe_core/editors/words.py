"""Which tokens of a source prompt are which of a target prompt (Prompt-to-Prompt, sec. 3.2).

A prompt's tokens are those of its words, separated by white space, one word after the other, with a
token before the first and one after the last; the rest of the window is padding. Words are found by
their text: letter case and punctuation around them do not count.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fpe_core.errors import PromptError

Weights = np.ndarray[Any, np.dtype[np.float64]]
Tokens = Callable[[str], Sequence[int]]
"""The token ids of a text, the first and the last special one included, however many there are."""


@dataclass(frozen=True, eq=False)
class TokenMix:
    """How an edit's cross-attention map is made of its source's and its own: A_s M + A_t D.

    Attributes:
        given: M, (tokens of the source's window, tokens of the edit's), float64.
        own: the diagonal of D, (tokens,), float64.
        source_words, target_words: (tokens,), 1.0 at the tokens of the words that say what is
            edited, else 0.0; None without such words.
    """

    given: Weights
    own: Weights
    source_words: Weights | None = None
    target_words: Weights | None = None


def plain_words(text: str) -> list[str]:
    """The words of a text as they are compared: without punctuation around them, in lower case."""
    words = (word.strip(string.punctuation) or word for word in text.split())
    return [word.casefold() for word in words]


def places_of(words: str, prompt: str) -> list[range]:
    """Where these words follow each other in a prompt, as numbers of its words from 0."""
    wanted, there = plain_words(words), plain_words(prompt)
    count = len(wanted)
    starts = range(len(there) - count + 1) if count else range(0)
    return [range(at, at + count) for at in starts if there[at : at + count] == wanted]


def word_tokens(tokens: Tokens, prompt: str) -> list[range]:
    """Per word of a prompt the places of its tokens, from 1, after the prompt's first token.

    Raises:
        PromptError: the tokens of the prompt are not those of its words.
    """
    spans, at = [], 1
    for word in prompt.split():
        count = len(tokens(word)) - 2
        spans.append(range(at, at + count))
        at += count
    alone = [each for word in prompt.split() for each in list(tokens(word))[1:-1]]
    if alone != list(tokens(prompt))[1:-1]:
        raise PromptError(
            f"the tokens of {prompt!r} are not those of its words one by one, so its words cannot "
            "be matched with those of another prompt; write it with plain spaces between words"
        )
    return spans


def indicator(tokens: Tokens, window: int, words: str, prompt: str) -> Weights:
    """(window,): 1.0 at the tokens of these words wherever they are in a prompt.

    Tokens of punctuation around a word are left out.

    Raises:
        PromptError: the words are not in the prompt, or only behind the end of the window.
    """
    found = np.zeros(window)
    spans, texts = word_tokens(tokens, prompt), prompt.split()
    for place in (each for places in places_of(words, prompt) for each in places):
        inside = _without_punctuation(tokens, texts[place], spans[place])
        found[[token for token in inside if token < window - 1]] = 1.0
    if not found.any():
        raise PromptError(f"the words {words!r} are not in the prompt {prompt!r}")
    return found


def refined(tokens: Tokens, window: int, source_prompt: str, target_prompt: str) -> TokenMix:
    """Tokens of both prompts, in the same order, take the source's column; others keep their own.

    Needleman-Wunsch over tokens, gap 0, match 1, mismatch -1. Padding is matched place by place.
    """
    source, target = list(tokens(source_prompt)), list(tokens(target_prompt))
    end = target[-1:]
    source = source[: window - 1] + source[-1:] if len(source) > window else source
    target = target[: window - 1] + end if len(target) > window else target
    given, own = np.zeros((window, window)), np.zeros(window)
    matched = _matches(source, target)
    for j in range(window):
        if j >= len(target):
            given[j, j] = 1.0
        elif j in matched:
            given[matched[j], j] = 1.0
        else:
            own[j] = 1.0
    return TokenMix(given, own)


def replaced(tokens: Tokens, window: int, source_prompt: str, target_prompt: str) -> TokenMix:
    """Word by word: the tokens of a word take the columns of the source's word in its place.

    Words of equally many tokens are matched token by token; else each token of the target's word
    takes the sum of the source's, divided by how many they are.

    Raises:
        PromptError: prompts of unequally many words.
    """
    words = source_prompt.split(), target_prompt.split()
    if len(words[0]) != len(words[1]):
        raise PromptError(unequal_words(source_prompt, target_prompt))
    given = np.zeros((window, window))
    given[0, 0] = 1.0
    i = j = 1
    pairs = zip(word_tokens(tokens, source_prompt), word_tokens(tokens, target_prompt), strict=True)
    for theirs, ours in pairs:
        inside = (
            [each for each in theirs if each < window],
            [each for each in ours if each < window],
        )
        if len(theirs) == len(ours):
            count = min(map(len, inside))
            given[inside[0][:count], inside[1][:count]] = 1.0
        else:
            given[np.ix_(*inside)] = 1.0 / len(ours)
        i, j = theirs.stop, ours.stop
    rest = max(0, window - max(i, j))  # the last token, and the padding
    given[range(i, i + rest), range(j, j + rest)] = 1.0
    return TokenMix(given, np.zeros(window))


def unequal_words(source_prompt: str, target_prompt: str) -> str:
    """Why words cannot be replaced one by one; "" if they can."""
    counts = len(source_prompt.split()), len(target_prompt.split())
    if counts[0] == counts[1]:
        return ""
    return (
        f"words are replaced one by one, and the source prompt has {counts[0]} words, the target "
        f"prompt {counts[1]}; controller refine takes any"
    )


def _matches(source: Sequence[int], target: Sequence[int]) -> dict[int, int]:
    """Target's token to source's, from the best alignment: as many equal ones as there are."""
    best = np.zeros((len(source) + 1, len(target) + 1), dtype=np.int64)
    for i, theirs in enumerate(source, start=1):
        for j, ours in enumerate(target, start=1):
            here = best[i - 1, j - 1] + (1 if theirs == ours else -1)
            best[i, j] = max(best[i, j - 1], best[i - 1, j], here)
    found, i, j = {}, len(source), len(target)
    while i and j:
        if best[i, j] == best[i, j - 1]:
            j -= 1
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            found[j] = i
    return found


def _without_punctuation(tokens: Tokens, word: str, span: range) -> range:
    """The part of a word's tokens that is not of the punctuation around it."""
    inner = word.strip(string.punctuation)
    if not inner:
        return span
    before, _, after = word.partition(inner)
    cut = [len(tokens(part)) - 2 if part else 0 for part in (before, inner, after)]
    if sum(cut) != len(span):  # punctuation that is one token with the word
        return span
    return range(span.start + cut[0], span.stop - cut[2])

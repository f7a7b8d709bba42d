"""The words of edits that take cross-attention maps: mixed prompts, and columns of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fpe_core.editors.words import TokenMix, Weights
from fpe_core.unet.exchange import WordMixtures, WordsWanted
from fpe_core.unet.prompts import EncodedPrompts


@dataclass(frozen=True, eq=False)
class EditWords:
    """What the edits of a call have of a `TokenMix` each.

    Attributes:
        mixtures: their mixed prompts, which are encoded behind all others.
        while_mixed, afterwards: the columns of their words, at steps with mixed maps and at all
            others; None without such words.
    """

    mixtures: WordMixtures
    while_mixed: WordsWanted | None
    afterwards: WordsWanted | None


def mix_words(
    text: EncodedPrompts,
    mixes: Sequence[TokenMix],
    targets: Sequence[int],
    attentions: tuple[int, ...],
) -> tuple[EncodedPrompts, EditWords]:
    """The prompts with the edits' mixed ones behind them, and where those are.

    As values are linear in the embedding, and have no bias, the values of M E are M V.

    Args:
        text: all prompts.
        mixes: of each edit.
        targets: of each edit, the row of its prompt.
        attentions: where the columns of words are wanted; empty if the edits have no words.
    """
    embeddings = text.embeddings
    exact = torch.promote_types(embeddings.dtype, torch.float32)

    def on_device(weights: Sequence[Weights]) -> Tensor:
        return torch.as_tensor(np.stack(weights), dtype=exact, device=embeddings.device)

    own = embeddings[list(targets)].to(exact)
    given_columns = on_device([mix.given for mix in mixes])
    own_columns = on_device([mix.own for mix in mixes])
    count = len(embeddings)
    added = [given_columns @ own]
    keeps = any(mix.own.any() for mix in mixes)
    if keeps:
        added.append(own_columns[:, :, None] * own)
    places = torch.arange(count, count + len(mixes), device=embeddings.device)
    mixtures = WordMixtures(places, places + len(mixes) if keeps else None)
    text = text.and_like(torch.cat(added), list(targets) * len(added))
    words = [(mix.source_words, mix.target_words) for mix in mixes]
    sources = [source for source, _ in words if source is not None]
    of_targets = [target for _, target in words if target is not None]
    if not attentions or len(sources) != len(mixes):
        return text, EditWords(mixtures, None, None)
    source, target = on_device(sources), on_device(of_targets)
    nothing = torch.zeros_like(source)
    mixed = (given_columns @ target[:, :, None])[:, :, 0]
    return text, EditWords(
        mixtures,
        WordsWanted(attentions, _both(source, mixed), _both(nothing, own_columns * target)),
        WordsWanted(attentions, _both(source, nothing), _both(nothing, target)),
    )


def _both(source: Tensor, target: Tensor) -> Tensor:
    return torch.stack([source, target], dim=-1)

"""What rows of a source hand over to rows of its edits during a step.

An attention map softmax(Q K^T / sqrt d) is a function of Q and K alone, so attending with the
source's Q and K over the target's V exchanges the map, and no map has to be materialised:

    softmax(Q_s K_s^T / sqrt d) V_t  =  scaled_dot_product_attention(Q_s, K_s, V_t)

The same hand-over does the rest: K and V instead of Q and K is mutual self-attention. Edits of a
cross-attention map that mix its columns by a matrix M need no map either, as

    (softmax(Q_s K_s^T / sqrt d) M) V_t  =  scaled_dot_product_attention(Q_s, K_s, M V_t),

and M V_t are the values of M E_t, the target's text embedding with its tokens mixed.

In each step the source rows run first, and what they give is stored (`Recorded`). The edits' rows
then run in as many chunks as memory requires. The pass through the UNet records and injects
(`fpe_core.unet.forward`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fpe_core.unet.prompts import PromptRows, TextKeys
from fpe_core.unet.rows import Chunk


class Projections(NamedTuple):
    """What one attention layer hands over for some rows; None for what it does not.

    Attributes:
        query: (rows, tokens, width).
        key, value: (rows, tokens, width); of cross-attention (rows, text tokens, width).
    """

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None

    def rows(self, index: Tensor) -> Projections:
        return Projections(*(None if each is None else each[index] for each in self))

    def only(self, takes: str) -> Projections:
        """Those that `takes` names, of "q", "k" and "v"."""
        return Projections(
            *(each if name in takes else None for name, each in zip("qkv", self, strict=True))
        )


class Site(NamedTuple):
    """An attention at which a pass records or is given something.

    Attributes:
        attention: its number.
        takes: what is recorded or given, of "q", "k" and "v".
        first_row: the rows from this one on; the others attend with their own.
        appends: keys and values come after the rows' own.
        mixes_words: the rows attend with mixed values, see `Exchange.mixed`.
    """

    attention: int
    takes: str
    first_row: int = 0
    appends: bool = False
    mixes_words: bool = False


class WordColumns(NamedTuple):
    """What is wanted of the cross-attention maps of the last rows of a pass.

    Attributes:
        attentions: of which maps; the mean over them and their heads is taken.
        of_given, of_own: (rows, text tokens, 2): the columns' weights in the maps that are given at
            `WordColumns.given`, and in the rows' own.
        given: the source's queries and keys at each of `attentions`.
    """

    attentions: tuple[int, ...]
    of_given: Tensor
    of_own: Tensor
    given: tuple[Projections, ...]


class Regions(NamedTuple):
    """Attention of a pass that masks split into inside and outside.

    Weights are taken off after the softmax, column by column, so they fold into V: a position
    inside gets the attention over V times the weights of the inside, one outside over V times those
    of the outside, and no map has to be materialised (`fpe_core.injection.AttentionRegions`).

    Attributes:
        inside: number of positions of an attention to its masks, (latents, positions), bool.
        inside_tokens, outside_tokens: (rows, text tokens): the weight of each token for positions
            inside and outside.
    """

    inside: Mapping[int, Tensor]
    inside_tokens: Tensor
    outside_tokens: Tensor


class Exchange(NamedTuple):
    """What a pass records of its rows or is given, by default nothing.

    Attributes:
        sites: the attentions, in order of execution.
        given: for each of `sites` what the rows attend with; if empty, the rows' own is recorded.
        resnets: (number among the UNet's operations, first row) of residual blocks whose residual
            is recorded or given.
        residuals: for each of `resnets` what is given; if empty, the rows' own is recorded.
        only: the output is not needed, and the pass ends with the last thing that is recorded.
        mixed: prompts of the rows from a site's `first_row` on, with their tokens mixed as the
            given map wants it; None if no site mixes words.
        kept: likewise for the rows' own map, whose part is added; None if it has none.
        words: the columns of cross-attention maps that are wanted; None: none are.
        regions: masks that split all attentions of the rows; None: nothing does.
    """

    sites: tuple[Site, ...] = ()
    given: tuple[Projections, ...] = ()
    resnets: tuple[tuple[int, int], ...] = ()
    residuals: tuple[Tensor, ...] = ()
    only: bool = False
    mixed: PromptRows | None = None
    kept: PromptRows | None = None
    words: WordColumns | None = None
    regions: Regions | None = None

    @property
    def is_of_maps(self) -> bool:
        """Whether no more than maps, queries with keys, are recorded or exchanged.

        Only such passes are captured as CUDA graphs.
        """
        return (
            not self.resnets
            and self.words is None
            and self.regions is None
            and all(site == Site(site.attention, "qk", site.first_row) for site in self.sites)
        )


class Handed(NamedTuple):
    """What a pass recorded: one for each of `Exchange.sites` and `resnets`, and the words' columns.

    `words`: (rows, tokens, 2), summed over `WordColumns.attentions`.
    """

    projections: tuple[Projections, ...] = ()
    residuals: tuple[Tensor, ...] = ()
    words: Tensor | None = None


class Recorded:
    """What the current step's source rows hand over."""

    def __init__(self) -> None:
        self._chunks: list[Handed] = []

    def clear(self) -> None:
        """Drops what was recorded, before the source rows of the next step record theirs."""
        self._chunks = []

    def record(self, handed: Handed) -> None:
        """Adds what the next source rows hand over."""
        self._chunks.append(handed)

    @property
    def all(self) -> Handed:
        """That of all source rows, in the order of recording."""
        if len(self._chunks) > 1:
            layers = zip(*(each.projections for each in self._chunks), strict=True)
            resnets = zip(*(each.residuals for each in self._chunks), strict=True)
            self._chunks = [
                Handed(
                    tuple(_joined(parts) for parts in layers),
                    tuple(torch.cat(parts) for parts in resnets),
                )
            ]
        return self._chunks[0]


def _joined(parts: Iterable[Projections]) -> Projections:
    of_kind = zip(*parts, strict=True)
    return Projections(
        *(
            None if each[0] is None else torch.cat([t for t in each if t is not None])
            for each in of_kind
        )
    )


@dataclass(frozen=True, eq=False)
class Record:
    """The rows of a source, or the conditional ones of guided rows, record what `sites` name.

    `only`: the output is not needed, and the pass ends with the last thing that is recorded.
    """

    recorded: Recorded
    sites: tuple[Site, ...]
    resnets: tuple[int, ...] = ()
    only: bool = False

    def of(self, chunk: Chunk, keys: TextKeys) -> Exchange:
        del keys
        first = chunk.first_conditional
        return Exchange(
            tuple(site._replace(first_row=first) for site in self.sites),
            resnets=tuple((each, first) for each in self.resnets),
            only=self.only,
        )

    def keep(self, handed: Handed, chunk: Chunk) -> None:
        del chunk
        self.recorded.record(handed)


@dataclass(frozen=True, eq=False)
class Taker:
    """Whose rows take, at a site or a residual block: (latents,), int64, for each latent the
    recorded row that gives to its conditional row, and to its unconditional one, if any does."""

    conditional: Tensor
    unconditional: Tensor | None

    def of(self, chunk: Chunk) -> tuple[int, Tensor]:
        """(first row that takes, the recorded row that gives to each row from there on)."""
        first = chunk.first_conditional
        given = self.conditional[chunk.items[first:]]
        if self.unconditional is None:
            return first, given
        return 0, torch.cat([self.unconditional[chunk.items[:first]], given])


@dataclass(frozen=True, eq=False)
class WordMixtures:
    """(edits,), int64: the mixed prompts of each edit, for the source's map and for its own.

    `kept`: None if no edit keeps anything of its own map.
    """

    mixed: Tensor
    kept: Tensor | None


@dataclass(frozen=True, eq=False)
class WordsWanted:
    """The columns of the edits' words, see `WordColumns`; `of_given`, `of_own`: (edits, ...)."""

    attentions: tuple[int, ...]
    of_given: Tensor
    of_own: Tensor


@dataclass(frozen=True, eq=False)
class Inject:
    """The rows of edits attend with what their sources recorded.

    Attributes:
        recorded: of the sources; read when a chunk runs.
        places: an attention to its place among the recorded ones.
        resnet_places: a residual block to its place among the recorded ones.
        sites: with who takes at each.
        resnets: numbers of residual blocks, with who takes there.
        mixtures: for the sites that mix words.
        words: columns that are wanted of the conditional rows.
        giver: (latents,), int64: the recorded row whose map is the source's in `words`.
        columns: the words' columns of each chunk, with the edits they are of.
    """

    recorded: Recorded
    places: Mapping[int, int]
    resnet_places: Mapping[int, int]
    sites: tuple[tuple[Site, Taker], ...] = ()
    resnets: tuple[tuple[int, Taker], ...] = ()
    mixtures: WordMixtures | None = None
    words: WordsWanted | None = None
    giver: Tensor | None = None
    columns: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def of(self, chunk: Chunk, keys: TextKeys) -> Exchange:
        takers = [taker for _, taker in self.sites] + [taker for _, taker in self.resnets]
        if len(chunk.edits) == 0 and all(taker.unconditional is None for taker in takers):
            return Exchange()
        handed = self.recorded.all
        taken = {taker: taker.of(chunk) for taker in dict.fromkeys(takers)}
        sites, given = [], []
        for site, taker in self.sites:
            first, rows = taken[taker]
            sites.append(site._replace(first_row=first))
            found = handed.projections[self.places[site.attention]]
            given.append(found.only(site.takes).rows(rows))
        resnets, residuals = [], []
        for number, taker in self.resnets:
            first, rows = taken[taker]
            resnets.append((number, first))
            residuals.append(handed.residuals[self.resnet_places[number]][rows])
        mixed, kept = None, None
        if self.mixtures is not None and any(site.mixes_words for site in sites):
            mixed = keys.of_rows(self.mixtures.mixed[chunk.edits])
            if self.mixtures.kept is not None:
                kept = keys.of_rows(self.mixtures.kept[chunk.edits])
        words = self._words(chunk, handed)
        return Exchange(
            tuple(sites),
            tuple(given),
            tuple(resnets),
            tuple(residuals),
            mixed=mixed,
            kept=kept,
            words=words,
        )

    def _words(self, chunk: Chunk, handed: Handed) -> WordColumns | None:
        if self.words is None or self.giver is None or len(chunk.edits) == 0:
            return None
        rows = self.giver[chunk.items[chunk.first_conditional :]]
        return WordColumns(
            self.words.attentions,
            self.words.of_given[chunk.edits],
            self.words.of_own[chunk.edits],
            tuple(
                handed.projections[self.places[each]].only("qk").rows(rows)
                for each in self.words.attentions
            ),
        )

    def keep(self, handed: Handed, chunk: Chunk) -> None:
        if handed.words is not None:
            self.columns.append((chunk.edits, handed.words))

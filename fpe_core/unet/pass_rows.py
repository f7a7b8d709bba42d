"""The rows of one pass through a UNet: what they share, record and are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fpe_core.unet.attend import attended, map_columns, projected
from fpe_core.unet.exchange import Exchange, Handed, Projections, Regions, Site, WordColumns
from fpe_core.unet.prompts import PromptRows


class _Own(NamedTuple):
    """The projections of the rows themselves: each computes those of the first n rows."""

    query: Callable[[int], Tensor]
    key: Callable[[int], Tensor]
    value: Callable[[int], Tensor]


class PassRows:
    """The rows of one pass: whether they still share latents, and which attention is next."""

    def __init__(
        self, prompts: PromptRows, latent_of_row: Tensor | None, exchange: Exchange
    ) -> None:
        self.are_shared = latent_of_row is not None
        self._recorded: list[Projections] = []
        self._residuals: list[Tensor] = []
        self._words: Tensor | None = None
        self._prompts = prompts
        self._latent_of_row = latent_of_row
        self._exchange = exchange
        self._sites = {site.attention: place for place, site in enumerate(exchange.sites)}
        self._next = 0

    @property
    def handed(self) -> Handed:
        """What was recorded so far."""
        return Handed(tuple(self._recorded), tuple(self._residuals), self._words)

    @property
    def are_done(self) -> bool:
        """Whether all is recorded and nothing else is wanted: the pass ends here."""
        return self._exchange.only and (len(self._recorded), len(self._residuals)) == (
            len(self._exchange.sites),
            len(self._exchange.resnets),
        )

    def expanded(self, shared: Tensor) -> Tensor:
        """(latents, ...) to (rows, ...), in the memory layout it had."""
        if self._latent_of_row is None:
            return shared
        rows = shared[self._latent_of_row]
        if shared.ndim == 4 and shared.is_contiguous(memory_format=torch.channels_last):
            return rows.contiguous(memory_format=torch.channels_last)
        return rows

    @property
    def next_differs(self) -> bool:
        """Whether the next attention differs between rows of one latent: something of it is given
        or recorded."""
        return self._next in self._sites

    def attend_self(self, attn: Any, hidden: Tensor) -> Tensor | None:
        """(rows, tokens, channels) to the same; None if the pass ends here."""
        own = _Own(
            lambda count: attn.to_q(_first(hidden, count)),
            lambda count: attn.to_k(_first(hidden, count)),
            lambda count: attn.to_v(_first(hidden, count)),
        )
        return self._attend(attn, hidden, own)

    def attend_text(self, attn: Any, hidden: Tensor) -> Tensor | None:
        """(rows, tokens, channels) to the same; None if the pass ends here."""
        if self._prompts.keys:
            key, value = self._prompts.keys[self._next // 2]
            own = _Own(
                lambda count: attn.to_q(_first(hidden, count)),
                lambda count: _first(key, count),
                lambda count: _first(value, count),
            )
        else:
            text = self._prompts.embeddings
            own = _Own(
                lambda count: attn.to_q(_first(hidden, count)),
                lambda count: attn.to_k(_first(text, count)),
                lambda count: attn.to_v(_first(text, count)),
            )
        return self._attend(attn, hidden, own)

    def record_residual(self, first_row: int, residual: Tensor) -> None:
        """Keeps the residual of the next block that is recorded, (rows, channels, h, w)."""
        self._residuals.append(residual[first_row:])

    def _attend(self, attn: Any, hidden: Tensor, own: _Own) -> Tensor | None:
        exchange, count = self._exchange, hidden.shape[0]
        place = self._sites.get(self._next)
        if exchange.regions is not None:
            joined = self._split(attn, own, exchange.regions, count)
        elif place is None:
            joined = attended(attn, own.query(count), own.key(count), own.value(count))
        elif exchange.given:
            site, given = exchange.sites[place], exchange.given[place]
            joined = self._taking(attn, own, site, given, count)
        else:
            made = self._recording(attn, own, exchange.sites[place], count)
            if made is None:
                return None
            joined = made
        words = exchange.words
        if words is not None and self._next in words.attentions:
            self._look(attn, own, words, count)
        self._next += 1
        return projected(attn, hidden, joined)

    def _recording(self, attn: Any, own: _Own, site: Site, count: int) -> Tensor | None:
        """What the rows attend to with their own; None if the pass ends here."""
        first, query, key = site.first_row, own.query(count), own.key(count)
        value = own.value(count) if "v" in site.takes else None
        kept = Projections(*(None if t is None else t[first:] for t in (query, key, value)))
        self._recorded.append(kept.only(site.takes))
        if self.are_done:
            return None
        return attended(attn, query, key, own.value(count) if value is None else value)

    def _taking(self, attn: Any, own: _Own, site: Site, given: Projections, count: int) -> Tensor:
        """What the rows attend to, those from the site's first on with what they are given."""
        first = site.first_row
        if site.mixes_words:
            return self._mixing(attn, own, first, given, count)
        query, key, value = (
            _behind(first, ours, theirs, count) if not site.appends else ours(count)
            for ours, theirs in zip(own, given, strict=True)
        )
        if not site.appends:
            return attended(attn, query, key, value)
        assert given.key is not None
        assert given.value is not None
        both = (
            torch.cat([key[first:], given.key], dim=1),
            torch.cat([value[first:], given.value], dim=1),
        )
        joined = attended(attn, query[first:], *both)
        if first:  # the others have fewer keys
            joined = torch.cat([attended(attn, query[:first], key[:first], value[:first]), joined])
        return joined

    def _mixing(self, attn: Any, own: _Own, first: int, given: Projections, count: int) -> Tensor:
        """As `_taking`, over the words of the prompts as the given map wants them.

        The map's part of its own comes on top: A_s (M V) + A_t (D V).
        """
        mixed, kept = self._exchange.mixed, self._exchange.kept
        assert mixed is not None
        query, key = (
            _behind(first, ours, theirs, count)
            for ours, theirs in ((own.query, given.query), (own.key, given.key))
        )
        value = torch.cat([own.value(first), self._values(attn, mixed)])
        joined = attended(attn, query, key, value)
        if kept is None:
            return joined
        more = attended(
            attn, own.query(count)[first:], own.key(count)[first:], self._values(attn, kept)
        )
        return torch.cat([joined[:first], joined[first:] + more])

    def _split(self, attn: Any, own: _Own, regions: Regions, count: int) -> Tensor:
        """What the rows attend to inside and outside of their masks, each position by its side."""
        query, key, value = own.query(count), own.key(count), own.value(count)
        inside = regions.inside[query.shape[1]]
        if self._latent_of_row is not None and not self.are_shared:
            inside = inside[self._latent_of_row]
        is_text = self._next % 2 == 1
        weights = (regions.inside_tokens, regions.outside_tokens) if is_text else (inside, ~inside)
        seen_inside, seen_outside = (
            attended(attn, query, key, value * each[:, :, None].to(value)) for each in weights
        )
        return torch.where(inside[:, :, None], seen_inside, seen_outside)

    def _values(self, attn: Any, prompts: PromptRows) -> Tensor:
        """The values of prompts in the next attention."""
        if prompts.keys:
            return prompts.keys[self._next // 2][1]
        values: Tensor = attn.to_v(prompts.embeddings)
        return values

    def _look(self, attn: Any, own: _Own, words: WordColumns, count: int) -> None:
        """Adds the words' columns of the next attention's maps."""
        first = count - len(words.of_own)
        given = words.given[words.attentions.index(self._next)]
        assert given.query is not None
        assert given.key is not None
        seen = map_columns(attn, given.query, given.key, words.of_given) + map_columns(
            attn, own.query(count)[first:], own.key(count)[first:], words.of_own
        )
        self._words = seen if self._words is None else self._words + seen


def _first(rows: Tensor, count: int) -> Tensor:
    """The first rows; a view of all of them would only take the host's time."""
    return rows if count == len(rows) else rows[:count]


def _behind(first: int, own: Callable[[int], Tensor], given: Tensor | None, count: int) -> Tensor:
    """The rows' own, in the place of those from the first on what is given, if anything is."""
    if given is None:
        return own(count)
    return torch.cat([own(first), given]) if first else given

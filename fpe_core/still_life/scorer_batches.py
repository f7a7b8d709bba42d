"""Batches in which a picture's caption has near misses: captions with one factor changed."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from numpy.typing import NDArray

from fpe_core.still_life.scene import FACTORS, FULL_PHRASINGS, PHRASINGS, Scene, caption

_VARIED = 3
GROUP = 2**_VARIED
"""Scenes with two values of each of three factors, in every combination: each has a near miss in
every one of them. Shape, which is the hardest to see, is always one of the three."""

_FULL_PHRASING_RATE = 0.8
_WORDS = list(FACTORS.values())
_SHAPE = list(FACTORS).index("shape")
_OTHERS = [place for place in range(len(FACTORS)) if place != _SHAPE]
_NAMED = np.array([[f"{{{factor}}}" in text for factor in FACTORS] for text in PHRASINGS])
"""(phrasings, factors): which factors a phrasing names."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """B scenes with a caption each.

    Attributes:
        chosen: (B,) int64, numbers of the scenes.
        captions: B texts, the i-th written for the i-th scene.
        is_true: (B, B) bool, scene i is what caption j says. Captions of other scenes are true too
        where they name the same factors, or fewer of them.
    """

    chosen: NDArray[np.int64]
    captions: list[str]
    is_true: NDArray[np.bool_]


class ScenePool:
    """The training scenes, found by their factors."""

    def __init__(self, scenes: list[Scene]) -> None:
        self._scenes = scenes
        self._values = np.array(
            [[words.index(getattr(s, name)) for name, words in FACTORS.items()] for s in scenes]
        )
        self._by_values: dict[tuple[int, ...], list[int]] = {}
        for number, values in enumerate(self._values.tolist()):
            self._by_values.setdefault(tuple(values), []).append(number)

    def batch(self, groups: int, rng: np.random.Generator) -> Batch:
        """`groups` groups, each about a scene drawn at random: B = groups * GROUP."""
        anchors = rng.integers(len(self._scenes), size=groups)
        chosen = np.array([n for anchor in anchors for n in self._group(int(anchor), rng)])
        # One phrasing per group: near misses differ in the factor's word and in nothing else.
        phrasings = np.repeat([_phrasing(rng) for _ in range(groups)], GROUP)
        pairs = zip(chosen.tolist(), phrasings.tolist(), strict=True)
        captions = [caption(self._scenes[number], phrasing) for number, phrasing in pairs]
        equal = self._values[chosen][:, None] == self._values[chosen][None, :]
        return Batch(chosen, captions, (equal | ~_NAMED[phrasings][None, :]).all(-1))

    def _group(self, anchor: int, rng: np.random.Generator) -> list[int]:
        """The anchor and its variants; any scene stands in for one that the pool lacks."""
        values = self._values[anchor]
        varied = [_SHAPE, *rng.choice(_OTHERS, size=_VARIED - 1, replace=False).tolist()]
        sizes = np.array([len(_WORDS[place]) for place in varied])
        other = (values[varied] + rng.integers(1, sizes)) % sizes
        group = [anchor]
        for changed in list(itertools.product((False, True), repeat=_VARIED))[1:]:
            variant = values.copy()
            variant[varied] = np.where(changed, other, values[varied])
            matching = self._by_values.get(tuple(variant.tolist()), range(len(self._scenes)))
            group.append(matching[int(rng.integers(len(matching)))])
        return group


def _phrasing(rng: np.random.Generator) -> int:
    """Mostly one that names every factor."""
    full = rng.random() < _FULL_PHRASING_RATE
    return int(rng.integers(*((0, FULL_PHRASINGS) if full else (FULL_PHRASINGS, len(PHRASINGS)))))

"""The benchmark's edits: of held-out scenes, so that their exact answers can be rendered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np

from fpe_core.editors.method import EditMethod
from fpe_core.still_life.instructions import instruction
from fpe_core.still_life.scene import FACTORS, Scene, caption, counterfactual, sample_scene

FIRST_SEED: Mapping[str, int] = MappingProxyType({"test": 2_000, "validation": 3_000})
"""The first seed of each split, of at most 1,000 scenes. Training begins at 1,000,000."""

MOST_SCENES = 1_000


@dataclasses.dataclass(frozen=True)
class BenchmarkEdit:
    """One factor of one scene changed to another of its values; everything else stays.

    `answer` is the scene whose image is the exact answer.
    """

    seed: int
    factor: str
    source: Scene
    answer: Scene

    @property
    def source_value(self) -> str:
        return str(getattr(self.source, self.factor))

    @property
    def target_value(self) -> str:
        return str(getattr(self.answer, self.factor))

    @property
    def source_prompt(self) -> str:
        return caption(self.source)

    @property
    def target_prompt(self) -> str:
        return caption(self.answer)

    @property
    def instruction(self) -> str:
        """The canonical sentence that asks for it."""
        return instruction(self.source, self.factor, self.target_value)

    def prompt_for(self, method: EditMethod) -> str:
        """What a method is told: the target's caption, or the instruction."""
        return self.instruction if method.prompts == "instruction" else self.target_prompt


def seeds_of(split: str, scenes: int) -> range:
    """The seeds of a split's first scenes.

    Raises ValueError for a split that does not exist, or more scenes than it has.
    """
    if split not in FIRST_SEED:
        raise ValueError(f"no split {split!r}; choose one of {', '.join(FIRST_SEED)}")
    if not 1 <= scenes <= MOST_SCENES:
        raise ValueError(f"a split has 1 to {MOST_SCENES} scenes, got {scenes}")
    return range(FIRST_SEED[split], FIRST_SEED[split] + scenes)


def edits_of_scene(seed: int, factors: Iterable[str] = FACTORS) -> list[BenchmarkEdit]:
    """One edit of each factor of a seed's scene; the new values are drawn from the seed."""
    scene, rng = sample_scene(seed), np.random.default_rng((seed, 1))
    drawn = {name: _another(scene, name, rng) for name in FACTORS}
    return [
        BenchmarkEdit(seed, name, scene, counterfactual(scene, **{name: drawn[name]}))
        for name in factors
    ]


def _another(scene: Scene, factor: str, rng: np.random.Generator) -> str:
    values = [value for value in FACTORS[factor] if value != getattr(scene, factor)]
    return values[int(rng.integers(len(values)))]

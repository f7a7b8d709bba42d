"""What a still life is: five named factors, a few free quantities, and captions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "shape": ("ball", "cube", "heart", "star", "cross", "ring"),
        "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "magenta"),
        "material": ("plain", "striped", "dotted"),
        "background": ("white", "grey", "black", "pink", "tan", "teal"),
        "style": ("photo", "poster", "sketch"),
    }
)
"""Every factor with its values. No word belongs to two factors, so a caption reads only one way."""

_FACTOR_OF_WORD = {word: factor for factor, words in FACTORS.items() for word in words}

PHRASINGS = (
    "a {style} of a {colour} {material} {shape} on a {background} background",
    "{style} of a {material} {colour} {shape} on a {background} background",
    "a {colour} {material} {shape} on a {background} background, {style}",
    "a {material} {shape} in {colour}, {background} background, a {style}",
    "a {style} of a {colour} {shape} on a {background} background",
    "a {colour} {material} {shape} on a {background} background",
    "a {style} of a {colour} {material} {shape}",
    "a {colour} {shape}",
)
"""Caption templates. The first is canonical; the first four name every factor."""

FULL_PHRASINGS = 4


@dataclasses.dataclass(frozen=True)
class Scene:
    """One object on a ground before a wall.

    Lengths are fractions of the image's side, x to the right and y downwards.
    """

    shape: str
    colour: str
    material: str
    background: str
    style: str
    centre_x: float
    centre_y: float
    radius: float
    angle_deg: float
    light: float
    """Where the light comes from: -1 the left, +1 the right."""
    horizon: float
    """Height of the line between wall and ground."""

    def __post_init__(self) -> None:
        for factor in FACTORS:
            _check_factor(factor, getattr(self, factor))


def sample_scene(seed: int) -> Scene:
    """The scene of a seed (>= 0): the same on every machine, factors uniform and independent."""
    rng = np.random.default_rng(seed)
    factors = {factor: words[int(rng.integers(len(words)))] for factor, words in FACTORS.items()}
    return Scene(
        **factors,
        centre_x=float(rng.uniform(0.40, 0.60)),
        centre_y=float(rng.uniform(0.43, 0.53)),
        radius=float(rng.uniform(0.27, 0.36)),
        angle_deg=float(rng.uniform(-18.0, 18.0)),
        light=float(rng.uniform(-1.0, 1.0)),
        horizon=float(rng.uniform(0.58, 0.66)),
    )


def caption(scene: Scene, phrasing: int = 0) -> str:
    """The sentence for a scene. `phrasing` picks one of `PHRASINGS`; 0 is canonical."""
    if not 0 <= phrasing < len(PHRASINGS):
        raise ValueError(f"phrasing {phrasing} does not exist; choose 0 to {len(PHRASINGS) - 1}")
    sentence = PHRASINGS[phrasing].format(**{name: getattr(scene, name) for name in FACTORS})
    return re.sub(r"\ba (?=[aeiou])", "an ", sentence)


def factors_in(text: str) -> dict[str, str]:
    """The factors a caption names, e.g. {"shape": "heart", "colour": "red"}.

    Words outside the grammar are ignored. Raises ValueError if a text names two values of one
    factor.
    """
    found: dict[str, str] = {}
    for word in re.findall(r"[a-z]+", text.lower()):
        factor = _FACTOR_OF_WORD.get(word)
        if factor is None:
            continue
        if found.setdefault(factor, word) != word:
            raise ValueError(f"{text!r} names two values of {factor}: {found[factor]!r}, {word!r}")
    return found


def counterfactual(scene: Scene, **factors: str) -> Scene:
    """The same scene with the named factors changed and everything else identical.

    Raises ValueError for a factor or a value that does not exist; the message lists those that do.
    """
    for factor, value in factors.items():
        _check_factor(factor, value)
    return dataclasses.replace(scene, **factors)  # type: ignore[arg-type]


def grammar_words() -> tuple[str, ...]:
    """Every word a caption can hold, sorted."""
    connecting = re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", " ".join(PHRASINGS)))
    return tuple(sorted({*_FACTOR_OF_WORD, *connecting, "an"}))


def _check_factor(factor: str, value: str) -> None:
    if factor not in FACTORS:
        raise ValueError(f"no factor {factor!r}; a scene has {', '.join(FACTORS)}")
    if value not in FACTORS[factor]:
        raise ValueError(f"no {factor} {value!r}; choose one of {', '.join(FACTORS[factor])}")

"""Instructions for edits of still lifes: "make it red", "turn the ring into a heart".

The value that an instruction asks for is the last word of a factor in it, so that it reads only one
way. The model with instructions (`builtin:still-life-instruct`) was trained on all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from fpe_core.still_life.scene import FACTORS, Scene

INSTRUCTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "shape": (
            "turn the {source} into a {target}",
            "replace the {source} with a {target}",
            "make it a {target}",
            "change the shape to a {target}",
        ),
        "colour": (
            "make it {target}",
            "make the {shape} {target}",
            "turn it {target}",
            "change the colour to {target}",
        ),
        "material": (
            "make it {target}",
            "make the {shape} {target}",
            "change the pattern to {target}",
            "it should be {target}",
        ),
        "background": (
            "put it on a {target} background",
            "make the background {target}",
            "change the background to {target}",
            "put the {shape} on a {target} background",
        ),
        "style": (
            "turn it into a {target}",
            "make it a {target}",
            "draw it as a {target}",
            "change the style to {target}",
        ),
    }
)
"""The phrasings of each factor's edits. The first one is canonical."""


def instruction(source: Scene, factor: str, target: str, phrasing: int = 0) -> str:
    """The sentence that asks for one factor of a scene to become another value.

    Args:
        source: the scene that is edited; some phrasings name its shape or the value that goes.
        factor: which of `FACTORS`.
        target: the value asked for.
        phrasing: which of the factor's `INSTRUCTIONS`; 0 is canonical.

    Raises:
        ValueError: a factor, a value or a phrasing that does not exist.
    """
    if factor not in FACTORS or target not in FACTORS[factor]:
        raise ValueError(f"no factor {factor!r} with a value {target!r}")
    if not 0 <= phrasing < len(INSTRUCTIONS[factor]):
        most = len(INSTRUCTIONS[factor]) - 1
        raise ValueError(f"phrasing {phrasing} does not exist; choose 0 to {most}")
    sentence = INSTRUCTIONS[factor][phrasing].format(
        source=getattr(source, factor), target=target, shape=source.shape
    )
    return re.sub(r"\ba (?=[aeiou])", "an ", sentence)

"""What editing methods are given besides prompts, as the renderer knows it: seed, mask, words.

An edit of shape, colour or material changes the object, one of background changes what is around
it. An edit of style changes every pixel: it has no region, and so neither a mask nor words for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpe_core.editors.method import EditInputs
from fpe_core.still_life.benchmark.edits import BenchmarkEdit
from fpe_core.still_life.render import object_mask
from fpe_core.still_life.scene import FACTORS, Scene

_OF_THE_OBJECT = ("shape", "colour", "material")


def true_inputs(edit: BenchmarkEdit, size_px: int = 128) -> EditInputs:
    """Everything that any method may be given with an edit.

    The seed is another one for every edit of every scene. See `changed_region` for the mask, and
    `changed_words` for the blend words; both are None for edits of style.

    Args:
        edit: the edit.
        size_px: side of the edited image in pixels.
    """
    return EditInputs(
        seed=edit.seed * len(FACTORS) + list(FACTORS).index(edit.factor),
        mask=changed_region(edit, size_px),
        blend_words=changed_words(edit),
    )


def changed_region(edit: BenchmarkEdit, size_px: int = 128) -> NDArray[np.bool_] | None:
    """The renderer's mask of what an edit changes: bool, (size_px, size_px); None for all of it.

    The object of the source and that of the exact answer together, or, for an edit of background,
    all but the pixels that the object covers.
    """
    if edit.factor in _OF_THE_OBJECT:
        either: NDArray[Any] = object_mask(edit.source, size_px) | object_mask(edit.answer, size_px)
        return either
    return ~object_mask(edit.source, size_px) if edit.factor == "background" else None


def changed_words(edit: BenchmarkEdit) -> tuple[str, str] | None:
    """The words of that region in the source's and in the target's caption; None for all of it."""
    if edit.factor in _OF_THE_OBJECT:
        return _object_words(edit.source), _object_words(edit.answer)
    if edit.factor == "background":
        return f"{edit.source_value} background", f"{edit.target_value} background"
    return None


def _object_words(scene: Scene) -> str:
    return f"{scene.colour} {scene.material} {scene.shape}"

"""All scores of an edit at once.

clip, structure = load_scorer(), load_structure_model()
scores = score_edits(
    sources, edits, source_prompts, target_prompts, clip=clip, structure=structure
)
scores[0].directional_similarity, scores[0].psnr_db
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fpe_core.errors import ParameterError
from fpe_core.scores.clip import ClipScorer, directional_similarity, image_similarity, text_score
from fpe_core.scores.edit_scores import CLIP_SCORES, SCORES, EditScores
from fpe_core.scores.lpips import LpipsModel, lpips
from fpe_core.scores.pixels import (
    changed_share,
    clipped_shift,
    psnr_db,
    saturation_shift,
    sharpness_ratio,
    ssim,
)
from fpe_core.scores.structure import StructureModel, structure_distance

_PIXEL_SCORES: dict[str, Callable[[Any, Any], list[Any]]] = {
    "ssim": ssim,
    "psnr_db": psnr_db,
    "changed_share": changed_share,
    "sharpness_ratio": sharpness_ratio,
    "saturation_shift": saturation_shift,
    "clipped_shift": clipped_shift,
}


def score_edits(
    sources: Sequence[Image.Image],
    edits: Sequence[Image.Image],
    source_prompts: Sequence[str | None],
    target_prompts: Sequence[str],
    *,
    clip: ClipScorer | None = None,
    structure: StructureModel | None = None,
    lpips_model: LpipsModel | None = None,
    which: AbstractSet[str] | None = None,
) -> list[EditScores]:
    """Scores edits against their sources and prompts, row by row, together.

    A source that is repeated (equal pixels) goes through each model once, and so does a text.

    Args:
        sources, edits: N PIL images each, an edit as large as its source.
        source_prompts: what the sources show; None if unknown.
        target_prompts: what the edits should show.
        clip, structure, lpips_model: the models; without one, its scores are not computed.
        which: the scores to compute, of `SCORES`; None: all whose model is given.

    Raises:
        ParameterError: an unknown score, one whose model is not given, lists of different lengths,
            or an edit of another size than its source.
        PromptError: a prompt that is not text.
    """
    chosen = _choose(which, clip, structure, lpips_model)
    _require_as_many(sources, edits, source_prompts, target_prompts)
    columns: dict[str, list[Any]] = {}
    if clip is not None:
        rows = _ClipRows(clip, sources, edits, source_prompts, target_prompts)
        columns |= {name: getattr(rows, name)() for name in chosen & CLIP_SCORES}
    if structure is not None and "structure_distance" in chosen:
        before = _once(structure.self_similarities, sources, _pixels_of)
        columns["structure_distance"] = structure_distance(
            before, structure.self_similarities(edits)
        )
    if lpips_model is not None and "lpips" in chosen:
        columns["lpips"] = lpips(lpips_model, sources, edits)
    columns |= {name: _PIXEL_SCORES[name](sources, edits) for name in chosen & set(_PIXEL_SCORES)}
    return [
        EditScores(**{name: values[row] for name, values in columns.items()})
        for row in range(len(edits))
    ]


def _require_as_many(*lists: Sequence[Any]) -> None:
    lengths = [len(each) for each in lists]
    if len(set(lengths)) > 1:
        raise ParameterError(
            "score_edits needs equally many sources, edits, source and target prompts, got "
            f"{', '.join(map(str, lengths))}"
        )


def _choose(
    which: AbstractSet[str] | None,
    clip: ClipScorer | None,
    structure: StructureModel | None,
    lpips_model: LpipsModel | None,
) -> AbstractSet[str]:
    off: dict[str, str] = {}
    if clip is None:
        off |= dict.fromkeys(CLIP_SCORES, "clip")
    if structure is None:
        off["structure_distance"] = "structure"
    if lpips_model is None:
        off["lpips"] = "lpips_model"
    if which is None:
        return SCORES - set(off)
    for name in sorted(which):
        if name not in SCORES:
            raise ParameterError(f"no score {name!r}; there are {', '.join(sorted(SCORES))}")
        if name in off:
            raise ParameterError(f"{name} needs a model; give {off[name]}=, or leave the score out")
    return which


@dataclasses.dataclass(frozen=True)
class _ClipRows:
    """A CLIP's embeddings of the rows, (N, D) each, computed only if a score needs them."""

    clip: ClipScorer
    sources: Sequence[Image.Image]
    edits: Sequence[Image.Image]
    source_prompts: Sequence[str | None]
    target_prompts: Sequence[str]

    @functools.cached_property
    def before(self) -> Tensor:
        return self._stack(_once(self.clip.embed_images, self.sources, _pixels_of))

    @functools.cached_property
    def after(self) -> Tensor:
        return self.clip.embed_images(self.edits)

    @functools.cached_property
    def targets(self) -> Tensor:
        return self._stack(_once(self.clip.embed_texts, self.target_prompts))

    def text_score(self) -> list[float]:
        return text_score(self.after, self.targets)

    def image_similarity(self) -> list[float]:
        return image_similarity(self.before, self.after)

    def directional_similarity(self) -> list[float | None]:
        texts = ["" if prompt is None else prompt for prompt in self.source_prompts]
        prompts = self._stack(_once(self.clip.embed_texts, texts))
        directions = directional_similarity(self.before, self.after, prompts, self.targets)
        return [
            None if prompt is None else direction
            for prompt, direction in zip(self.source_prompts, directions, strict=True)
        ]

    def _stack(self, rows: list[Tensor]) -> Tensor:
        return torch.stack(rows) if rows else torch.zeros(0, self.clip.width)


def _once(
    embed: Callable[[list[Any]], Iterable[Tensor]],
    items: Sequence[Any],
    identify: Callable[[Any], Hashable] = lambda item: item,
) -> list[Tensor]:
    """The embedding of each item; items with equal keys are embedded once."""
    names = [identify(item) for item in items]
    first = dict(zip(reversed(names), reversed(items), strict=True))
    made = dict(zip(first, embed(list(first.values())), strict=True))
    return [made[name] for name in names]


def _pixels_of(image: Image.Image) -> Hashable:
    """A key that is equal for images whose pixels are equal as RGB."""
    return image.size, hashlib.blake2b(image.convert("RGB").tobytes(), digest_size=16).digest()

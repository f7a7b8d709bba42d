"""Samples of boxes and masks that do or do not hold in an edit, known from the renderer.

A sample has a source, an image, and two IoUs of the object in the two: of its masks, and of the
boxes around them. A box or mask holds if its IoU is at least 0.75. There are two kinds of images:

    model    edits that a model made; masks of source and edit are recovered from the images by
             `judgement.recovered_mask`, so that the rim that it adds cancels out; their boxes leave
             out 3 % of the pixels on every side, because single specks would enlarge them
    moved    exact answers of the same edits with the object moved, grown and turned by chance, a
             little or a lot, and saved as JPEG: masks are the renderer's own
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpe_core.editor import Editor
from fpe_core.image.boxes import Box
from fpe_core.parameters import EditParameters
from fpe_core.scores.regions import region_of_box, region_of_mask
from fpe_core.scores.structure import StructureModel
from fpe_core.still_life.benchmark.edits import BenchmarkEdit, edits_of_scene
from fpe_core.still_life.benchmark.judgement import as_unit, intersection_over_union, recovered_mask
from fpe_core.still_life.degrade import compressed
from fpe_core.still_life.render import object_mask, render
from fpe_core.still_life.scene import Scene, caption, sample_scene

HOLDS_IOU = 0.75
_SPECKS = 0.03  # share of a recovered mask on each side that may be specks
_MOVE, _GROWTH, _TURN_DEG = 0.06, 0.2, 25.0  # deviations: of the side, log of the radius, degrees
_JPEG_QUALITIES = (60, 95)
_SCENES_AT_ONCE = 4

Mask = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class RegionSample:
    """An image, what the renderer knows of it (IoUs, 0..1), and scores by name."""

    kind: str
    factor: str
    box_iou: float
    mask_iou: float
    scores: Mapping[str, float]


def moved_samples(
    seeds: Sequence[int], structure: StructureModel | None = None
) -> Iterator[RegionSample]:
    """One of each edit of the seeds' scenes."""
    for edit in (edit for seed in seeds for edit in edits_of_scene(seed)):
        rng = np.random.default_rng((edit.seed, len(edit.factor), 3))
        answer = moved(edit.answer, rng)
        image = compressed(render(answer), int(rng.integers(*_JPEG_QUALITIES)))
        masks = object_mask(edit.source), object_mask(answer)
        yield _sample("moved", edit, image, masks, structure)


def model_samples(
    editor: Editor,
    seeds: Sequence[int],
    arms: Sequence[EditParameters],
    structure: StructureModel | None = None,
) -> Iterator[RegionSample]:
    """One sample per factor of the seeds' scenes and arm; `arms` share steps and size."""
    for first in range(0, len(seeds), _SCENES_AT_ONCE):
        chunk = seeds[first : first + _SCENES_AT_ONCE]
        scenes = [sample_scene(seed) for seed in chunk]
        sources = [render(scene, arms[0].width_px) for scene in scenes]
        inversion = editor.invert(sources, [caption(scene) for scene in scenes], arms[0])
        edits = [edits_of_scene(seed) for seed in chunk]
        prompts = [[edit.target_prompt for edit in of_scene] for of_scene in edits]
        for parameters in arms:
            made = editor.edit(inversion, prompts, parameters).edits
            for of_scene, outputs in zip(edits, made, strict=True):
                for edit, output in zip(of_scene, outputs, strict=True):
                    images = (render(edit.source, output.image.width), output.image)
                    first_mask, second = (recovered_mask(as_unit(p), edit.answer) for p in images)
                    masks = first_mask, second
                    yield _sample("model", edit, output.image, masks, structure)


def moved(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with its object moved, grown or shrunk, and turned, by a little or a lot."""
    amount = float(rng.uniform())
    across, down, growth, turn = (float(x) * amount for x in rng.normal(size=4))
    return dataclasses.replace(
        scene,
        centre_x=scene.centre_x + _MOVE * across,
        centre_y=scene.centre_y + _MOVE * down,
        radius=scene.radius * math.exp(_GROWTH * growth),
        angle_deg=scene.angle_deg + _TURN_DEG * turn,
    )


def box_around(mask: Mask, ignored: float = 0.0) -> Box | None:
    """The box around a mask's pixels without the share `ignored` on every side; None if empty."""
    if not mask.any():
        return None
    (left, right), (top, bottom) = (_ends(mask.sum(axis=axis), ignored) for axis in (0, 1))
    return Box(left, top, right, bottom)


def _ends(profile: NDArray[np.int64], ignored: float) -> tuple[float, float]:
    there = np.flatnonzero(profile)
    reached = np.concatenate([[0.0], np.cumsum(profile)]) / profile.sum()
    low, high = np.interp([ignored, 1.0 - ignored], reached, np.arange(len(reached)))
    return max(float(low), float(there[0])), min(float(high), float(there[-1] + 1))


def box_iou(first: Box | None, second: Box | None) -> float:
    """IoU of two boxes, 0..1; 0 if one is missing."""
    if first is None or second is None:
        return 0.0
    width = min(first.right, second.right) - max(first.left, second.left)
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    shared = max(0.0, width) * max(0.0, height)
    return shared / (first.area + second.area - shared)


def _sample(
    kind: str,
    edit: BenchmarkEdit,
    image: Image.Image,
    masks: tuple[Mask, Mask],
    structure: StructureModel | None,
) -> RegionSample:
    """`masks` of the object in source and image."""
    specks = _SPECKS if kind == "model" else 0.0
    source, annotation = render(edit.source, image.width), object_mask(edit.source, image.width)
    box = box_around(annotation)
    assert box is not None  # every scene shows its object
    scores = {
        "box": region_of_box(source, box).structure_in(image) or 0.0,
        "mask": region_of_mask(source, annotation).structure_in(image) or 0.0,
    }
    if structure is not None:
        scores["ViT"] = -token_distance(structure, source, image, box)
    return RegionSample(
        kind,
        edit.factor,
        box_iou(*(box_around(mask, specks) for mask in masks)),
        intersection_over_union(*masks),
        scores,
    )


def token_distance(
    structure: StructureModel, source: Image.Image, image: Image.Image, box: Box
) -> float:
    """`fpe_core.structure_distance` of the tokens whose centres lie in a box, to all tokens: a
    ViT's alternative to `fpe_core.scores.regions`. For square images; from 0, lower = structure
    kept."""
    before, after = structure.self_similarities([source, image])
    side = math.isqrt(len(before) - 1)
    places = (np.arange(side) + 0.5) * source.width / side
    rows = np.flatnonzero((places > box.top) & (places < box.bottom))
    columns = np.flatnonzero((places > box.left) & (places < box.right))
    chosen = [len(before) - side * side + int(y) * side + int(x) for y in rows for x in columns]
    return float(((before[chosen] - after[chosen]) ** 2).mean()) if chosen else 0.0

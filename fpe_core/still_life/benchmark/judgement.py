"""Whether an edited image is right, by the renderer that knows the exact answer.

success     analysis by synthesis: of the scenes with every value of the edited factor, the one
            whose image is nearest to the output (squared error) has the value asked for
structure   IoU of the object's mask in the output and in the exact answer, both recovered from
            the image by `recovered_mask`, so that the rim that it adds cancels out
psnr_db     likeness to the exact answer, whole image
kept_psnr_db  the same where source and exact answer agree: what should not change
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpe_core.still_life.benchmark.edits import BenchmarkEdit
from fpe_core.still_life.render import render, render_ground
from fpe_core.still_life.scene import FACTORS, Scene, counterfactual

Pixels = NDArray[np.float32]  # (H, W, 3), 0..1

LEAST_STRUCTURE = 0.75
"""IoU of the object's mask in an edit and in the exact answer, that a good edit has at least."""

_FAR_RADII = 1.15  # from the object's centre: no shape reaches there
_OBJECT_DIFFERENCE = 0.12  # root of the squared RGB difference to the empty scene
_FITTED_PX = 64
_SAME = 2.5 / 255.0
_LEAST_KEPT_SHARE = 0.02
_BEST_PSNR_DB = 100.0


@dataclasses.dataclass(frozen=True)
class Judgement:
    """An output against its exact answer.

    Attributes:
        read_value: the edited factor's value that the output shows.
        success: whether it is the one asked for.
        structure: IoU, 0..1.
        psnr_db, kept_psnr_db: at most 100; `kept_psnr_db` is None if an edit changes (nearly) every
        pixel, as edits of style do.
    """

    read_value: str
    success: bool
    structure: float
    psnr_db: float
    kept_psnr_db: float | None

    @property
    def score(self) -> float:
        """Success x structure, 0..1."""
        return self.success * self.structure


def is_good(judgement: Judgement) -> bool:
    """Whether one would keep the edit: it shows the requested value, and the object where it should
    be."""
    return judgement.success and judgement.structure >= LEAST_STRUCTURE


def judge(edit: BenchmarkEdit, output: Image.Image) -> Judgement:
    """Judges a square output; the scenes are rendered in its size."""
    image, size_px = as_unit(output), output.width
    source, answer = (as_unit(render(scene, size_px)) for scene in (edit.source, edit.answer))
    read_value = _nearest_value(edit, output)
    kept = np.abs(source - answer).max(axis=-1) <= _SAME
    return Judgement(
        read_value=read_value,
        success=read_value == edit.target_value,
        structure=intersection_over_union(
            recovered_mask(image, edit.answer), recovered_mask(answer, edit.answer)
        ),
        psnr_db=psnr_db(image, answer),
        kept_psnr_db=(
            psnr_db(image[kept], answer[kept]) if kept.mean() >= _LEAST_KEPT_SHARE else None
        ),
    )


def recovered_mask(image: Pixels, scene: Scene) -> NDArray[np.bool_]:
    """Where an image shows the object: bool, (H, W).

    Of the empty scenes with every background and style, the one nearest to the image far from the
    object is subtracted; the object is where what remains, averaged over 3 x 3 pixels, exceeds
    0.12. So a wrong colour, pattern or background costs no structure. The scene gives the place,
    the horizon and the light. On rendered images it finds the renderer's own mask with a mean IoU
    of 0.95 (it adds a rim of one pixel).
    """
    size_px = image.shape[0]
    centres = (np.arange(size_px) + 0.5) / size_px
    far = np.hypot(centres[None] - scene.centre_x, centres[:, None] - scene.centre_y)
    is_far = far > _FAR_RADII * scene.radius
    differences = [
        ((ground - image) ** 2).sum(axis=-1) for ground in _empty_scenes(_emptied(scene), size_px)
    ]
    nearest = min(differences, key=lambda difference: float(difference[is_far].mean()))
    mask: NDArray[np.bool_] = np.sqrt(_mean_of_nine(nearest)) > _OBJECT_DIFFERENCE
    return mask


def intersection_over_union(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """IoU of two masks, 0..1; of two empty ones 1."""
    union = int((first | second).sum())
    return 1.0 if union == 0 else int((first & second).sum()) / union


def psnr_db(first: Pixels, second: Pixels) -> float:
    """Peak signal-to-noise ratio of values in 0..1, at most 100 dB."""
    error = float(np.mean((first.astype(np.float64) - second) ** 2))
    return min(_BEST_PSNR_DB, -10.0 * math.log10(max(error, 1e-12)))


def as_unit(image: Image.Image) -> Pixels:
    """An RGB image as (H, W, 3) float32, 0..1."""
    return np.asarray(image, dtype=np.float32) / np.float32(255.0)


def fitted_error(image: Pixels, scene: Scene) -> float:
    """Mean squared error between an image and a scene, in the best pose found near the scene's.

    Position, size and angle are optimised one after the other, in steps of 0.03 of the side, 8 %
    and 8 degrees, then in half steps.
    """
    size_px = image.shape[0]

    def error(pose: Scene) -> float:
        return float(np.mean((as_unit(render(pose, size_px)) - image) ** 2))

    best, least = scene, error(scene)
    for scale in (1.0, 1.0, 0.5):
        for moves in _moves(scale):
            for move in moves:
                moved = move(best)
                found = error(moved)
                if found < least:
                    best, least = moved, found
                    break
    return least


def _moves(scale: float) -> list[tuple[Callable[[Scene], Scene], Callable[[Scene], Scene]]]:
    """Each free quantity of a pose, as a step there and a step back."""

    def step(name: str, by: float) -> Callable[[Scene], Scene]:
        return lambda scene: dataclasses.replace(scene, **{name: getattr(scene, name) + by})

    def grown(by: float) -> Callable[[Scene], Scene]:
        return lambda scene: dataclasses.replace(scene, radius=scene.radius * by)

    steps = [("centre_x", 0.03), ("centre_y", 0.03), ("angle_deg", 8.0)]
    there_and_back = [(step(name, by * scale), step(name, -by * scale)) for name, by in steps]
    return [(grown(1 - 0.08 * scale), grown(1 + 0.08 * scale)), *there_and_back]


def _nearest_value(edit: BenchmarkEdit, output: Image.Image) -> str:
    small = output.resize((_FITTED_PX, _FITTED_PX), Image.Resampling.BOX)
    candidates = {
        value: counterfactual(edit.answer, **{edit.factor: value}) for value in FACTORS[edit.factor]
    }
    return min(candidates, key=lambda value: fitted_error(as_unit(small), candidates[value]))


def _emptied(scene: Scene) -> Scene:
    """The same for all scenes that differ in factors only: their empty scenes are the same."""
    return counterfactual(scene, **{factor: values[0] for factor, values in FACTORS.items()})


@functools.lru_cache(maxsize=8)  # a scene's edits and arms are judged one after another
def _empty_scenes(scene: Scene, size_px: int) -> list[Pixels]:
    return [
        render_ground(counterfactual(scene, background=background, style=style), size_px)
        for background, style in itertools.product(FACTORS["background"], FACTORS["style"])
    ]


def _mean_of_nine(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    padded = np.pad(plane, 1, mode="edge")
    height, width = plane.shape
    shifted = [padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
    mean: NDArray[np.float32] = np.mean(shifted, axis=0)
    return mean

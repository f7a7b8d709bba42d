"""Sources that are hard to invert, each from a held-out scene whose exact answers are known.

A scene's image is spoiled (grain, blur, JPEG, a checkerboard or soft light over it), captioned as
another scene, or inverted in few steps. How strongly is drawn from the scene's seed. The exact
answer of an edit can be spoiled in the same way: that is what a perfect editor would return.

Strengths are limited, so that the benchmark's judge does not reject the spoiled exact answer
itself.

Images of another world (noise, checkerboards, clouds) show no scene and have no right answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fpe_core.still_life.benchmark.edits import MOST_SCENES, seeds_of
from fpe_core.still_life.degrade import compressed
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import Scene, caption, sample_scene

Pixels = NDArray[np.float64]  # (H, W, 3), 0..1

_Spoil = Callable[[Pixels, np.random.Generator], Pixels]

FEW_STEPS = (3, 5)
"""Numbers of steps of the sources of kind few_steps, in turn."""


@dataclasses.dataclass(frozen=True)
class HardSource:
    """One source to be inverted.

    Attributes:
        kind: one of SCENE_KINDS or FOREIGN_KINDS.
        seed: of the scene it shows; for a foreign image, of the scene whose caption it has.
        source_prompt: the prompt for the inversion.
        steps: None: as in the edits' parameters.
    """

    kind: str
    seed: int
    source_prompt: str
    steps: int | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether it shows no scene, so that no edit of it has a right answer."""
        return self.kind in FOREIGN_KINDS

    @property
    def is_spoiled(self) -> bool:
        """Whether its image differs from the renderer's."""
        return self.is_foreign or SCENE_KINDS[self.kind] is not None

    @property
    def scene(self) -> Scene:
        return sample_scene(self.seed)

    def image(self, size_px: int) -> Image.Image:
        """The source, RGB, `size_px` squared."""
        if self.is_foreign:
            return _as_image(FOREIGN_KINDS[self.kind](size_px, self._rng()))
        return self.spoil(render(self.scene, size_px))

    def spoil(self, image: Image.Image) -> Image.Image:
        """An image of the source's size, spoiled in the same way."""
        change = SCENE_KINDS[self.kind]
        return image if change is None else _as_image(change(_as_unit(image), self._rng()))

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng((self.seed, 3))


def hard_sources(split: str, scenes_per_kind: int) -> list[HardSource]:
    """`scenes_per_kind` sources of every kind, twice as many clean ones; every seed is used once.

    Raises ValueError for a split that does not exist, or more scenes than it has.
    """
    kinds = ["clean", *SCENE_KINDS, *FOREIGN_KINDS]
    seeds = seeds_of(split, min(scenes_per_kind, MOST_SCENES) * len(kinds))
    return [
        _hard_source(kinds[place % len(kinds)], seed, place // len(kinds))
        for place, seed in enumerate(seeds)
    ]


def _hard_source(kind: str, seed: int, number: int) -> HardSource:
    captioned = seed + 1 if kind == "wrong_prompt" else seed
    steps = FEW_STEPS[number % len(FEW_STEPS)] if kind == "few_steps" else None
    return HardSource(kind, seed, caption(sample_scene(captioned)), steps)


def _grain(image: Pixels, rng: np.random.Generator) -> Pixels:
    return image + rng.uniform(0.01, 0.07) * rng.standard_normal(image.shape)


def _blur(image: Pixels, rng: np.random.Generator) -> Pixels:
    radius_px = rng.uniform(0.01, 0.04) * len(image)
    return _as_unit(_as_image(image).filter(ImageFilter.GaussianBlur(radius_px)))


def _jpeg(image: Pixels, rng: np.random.Generator) -> Pixels:
    return _as_unit(compressed(_as_image(image), int(rng.integers(2, 20))))


def _under_checks(image: Pixels, rng: np.random.Generator) -> Pixels:
    share = rng.uniform(0.03, 0.15)
    return (1 - share) * image + share * _checkerboard(len(image), rng)


def _under_clouds(image: Pixels, rng: np.random.Generator) -> Pixels:
    share = rng.uniform(0.03, 0.15)
    return (1 - share) * image + share * _clouds(len(image), rng)


def _noise(size_px: int, rng: np.random.Generator) -> Pixels:
    return rng.random((size_px, size_px, 3))


def _checkerboard(size_px: int, rng: np.random.Generator) -> Pixels:
    """Fields of a 32nd to an eighth of the side, of two colours."""
    field_px = size_px // int(rng.choice([8, 16, 32]))
    rows, columns = np.indices((size_px, size_px)) // field_px
    colours = rng.random((2, 3))
    fields: Pixels = colours[(rows + columns) % 2]
    return fields


def _clouds(size_px: int, rng: np.random.Generator) -> Pixels:
    """Noise whose amplitude falls with frequency, as that of photographs does (Field 1987)."""
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.fftfreq(size_px)[None])
    frequency[0, 0] = 1.0 / size_px
    spectrum = np.fft.fft2(rng.standard_normal((3, size_px, size_px))) / frequency
    planes = np.fft.ifft2(spectrum).real
    planes -= planes.mean(axis=(1, 2), keepdims=True)
    planes /= 4 * planes.std(axis=(1, 2), keepdims=True)
    return np.moveaxis(planes + 0.5, 0, -1).clip(0.0, 1.0)


SCENE_KINDS: dict[str, _Spoil | None] = {
    "clean": None,
    "grain": _grain,
    "blur": _blur,
    "jpeg": _jpeg,
    "checks": _under_checks,
    "clouds": _under_clouds,
    "wrong_prompt": None,
    "few_steps": None,
}
"""Sources that show a scene, and what is done to its image."""

FOREIGN_KINDS: dict[str, Callable[[int, np.random.Generator], Pixels]] = {
    "only_noise": _noise,
    "only_checks": _checkerboard,
    "only_clouds": _clouds,
}
"""Images of another world."""


def _as_unit(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float64) / 255.0


def _as_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray((pixels.clip(0.0, 1.0) * 255.0).round().astype(np.uint8))

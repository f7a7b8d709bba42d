"""What the gate on sources achieves: which sources it refuses, and whether their edits are bad.

    tried = list(run_gate_benchmark(editor, hard_sources("validation", 5), parameters))
    gate_figures(tried).auc_foreign

Clean, spoiled and foreign sources (`hard_sources`) are measured as the gate measures them: PSNR of
the source, encoded and decoded, to itself. The scenes among them are edited and judged against
exact answers. An edit is bad if it misses the requested value or has an IoU below 0.75. An edit
only counts if its exact answer, spoiled like its source, is judged good; otherwise the spoiling
decides, not the edit.

Measured 2026-11-25 by `fpe bench gate --device cpu`: 48 sources, 168 askable edits of which 47 are
bad, built-in model, 25 steps, float32, one thread of an Intel Xeon. Terms as in GateFigures.

    AUC 0.49 (0.39 to 0.59), within kinds 0.51, foreign 1.00, caught 0.04
    scenes 25.6 dB or more, images of another world 18.7 dB or less

So the PSNR does not predict a bad edit of an image that the model knows. It shows whether the model
knows the image at all. Estimates that sample the source back from its inversion, at up to one UNet
row per step, predicted no better: with enough inversion steps, an AUC of 0.50.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fpe_core.editor import Editor
from fpe_core.judging.reconstruction import measure_autoencoder
from fpe_core.parameters import EditParameters
from fpe_core.still_life.benchmark.edits import BenchmarkEdit, edits_of_scene
from fpe_core.still_life.benchmark.hard_sources import HardSource
from fpe_core.still_life.benchmark.judgement import Judgement, is_good, judge
from fpe_core.still_life.benchmark.measure_scores import area_under_curve
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS

_SOURCES_AT_ONCE = 8
_RESAMPLES = 500
_LOST_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class TriedEdit:
    """An edit of a source. `is_askable`: the exact answer, spoiled like the source, is good."""

    edit: BenchmarkEdit
    judgement: Judgement
    is_askable: bool

    @property
    def is_good(self) -> bool:
        return is_good(self.judgement)


@dataclasses.dataclass(frozen=True)
class TriedSource:
    """A source, its PSNR in dB (encoded and decoded, to itself), and its edits."""

    source: HardSource
    autoencoder_psnr_db: float
    edits: tuple[TriedEdit, ...]


@dataclasses.dataclass(frozen=True)
class GateFigures:
    """What the PSNR of a source predicts; NaN if there is nothing to compare.

    Attributes:
        auc: probability that a good edit's source has a higher PSNR than a bad edit's, 0..1; 0.5 is
            no better than chance.
        auc_low, auc_high: its 5th and 95th percentile, by bootstrap over the sources.
        auc_within_kinds: the same, comparing only edits whose sources are of one kind.
        auc_foreign: probability that a clean source has a higher PSNR than an image of another
            world.
        caught: share of the bad edits below the threshold that 5 % of the good ones are below.
        scenes_lowest_db: lowest PSNR of the sources that show a scene, spoiled ones included.
        foreign_highest_db: highest PSNR of the images of another world. If it is below
            `scenes_lowest_db`, a limit between the two refuses exactly these images.
    """

    auc: float
    auc_low: float
    auc_high: float
    auc_within_kinds: float
    auc_foreign: float
    caught: float
    scenes_lowest_db: float
    foreign_highest_db: float


def run_gate_benchmark(
    editor: Editor,
    sources: Sequence[HardSource],
    parameters: EditParameters,
    *,
    factors: Iterable[str] = FACTORS,
) -> Iterator[TriedSource]:
    """Measures, inverts, edits and judges source by source, a few at a time."""
    factors = tuple(factors)
    by_steps: dict[int, list[HardSource]] = {}
    for source in sources:
        by_steps.setdefault(source.steps or parameters.steps, []).append(source)
    for steps, alike in by_steps.items():
        own = dataclasses.replace(parameters, steps=steps)
        for first in range(0, len(alike), _SOURCES_AT_ONCE):
            yield from _try_together(editor, alike[first : first + _SOURCES_AT_ONCE], own, factors)


def _try_together(
    editor: Editor,
    sources: Sequence[HardSource],
    parameters: EditParameters,
    factors: tuple[str, ...],
) -> Iterator[TriedSource]:
    images = [source.image(parameters.width_px) for source in sources]
    measured = measure_autoencoder(editor, images, parameters)
    inversion = editor.invert(images, [source.source_prompt for source in sources], parameters)
    asked = [[] if s.is_foreign else edits_of_scene(s.seed, factors) for s in sources]
    result = editor.edit(inversion, [[edit.target_prompt for edit in of] for of in asked])
    for place, source in enumerate(sources):
        outputs = (edit.image for edit in result.edits[place])
        yield TriedSource(
            source,
            measured[place],
            tuple(
                TriedEdit(edit, judge(edit, output), _is_askable(source, edit, output.width))
                for edit, output in zip(asked[place], outputs, strict=True)
            ),
        )


def _is_askable(source: HardSource, edit: BenchmarkEdit, size_px: int) -> bool:
    if not source.is_spoiled:
        return True  # the exact answer itself
    return is_good(judge(edit, source.spoil(render(edit.answer, size_px))))


def gate_figures(tried: Sequence[TriedSource]) -> GateFigures:
    """What the PSNR predicts for the askable edits, and for foreign sources."""
    low, high = _interval(tried)
    foreign = [each.autoencoder_psnr_db for each in tried if each.source.is_foreign]
    scenes = [each.autoencoder_psnr_db for each in tried if not each.source.is_foreign]
    clean = [each.autoencoder_psnr_db for each in tried if each.source.kind == "clean"]
    return GateFigures(
        auc=_auc(tried),
        auc_low=low,
        auc_high=high,
        auc_within_kinds=_auc_within_kinds(tried),
        auc_foreign=_area(clean, foreign),
        caught=_caught(*_good_and_bad(tried)),
        scenes_lowest_db=min(scenes, default=float("nan")),
        foreign_highest_db=max(foreign, default=float("nan")),
    )


def _good_and_bad(tried: Iterable[TriedSource]) -> tuple[list[float], list[float]]:
    """The PSNR of each good edit's source, and of each bad edit's."""
    good: list[float] = []
    bad: list[float] = []
    for source in tried:
        for edit in source.edits:
            if edit.is_askable:
                (good if edit.is_good else bad).append(source.autoencoder_psnr_db)
    return good, bad


def _auc(tried: Iterable[TriedSource]) -> float:
    return _area(*_good_and_bad(tried))


def _area(higher: Sequence[float], lower: Sequence[float]) -> float:
    return area_under_curve(higher, lower) if higher and lower else float("nan")


def _auc_within_kinds(tried: Sequence[TriedSource]) -> float:
    pairs = area = 0.0
    for kind in {source.source.kind for source in tried}:
        good, bad = _good_and_bad([each for each in tried if each.source.kind == kind])
        if good and bad:
            area += area_under_curve(good, bad) * len(good) * len(bad)
            pairs += len(good) * len(bad)
    return area / pairs if pairs else float("nan")


def _interval(tried: Sequence[TriedSource]) -> tuple[float, float]:
    """Bootstraps whole sources, because edits of one source are not independent."""
    rng = np.random.default_rng(0)
    drawn = (rng.integers(len(tried), size=len(tried)) for _ in range(_RESAMPLES))
    areas = [_auc([tried[place] for place in places]) for places in drawn]
    finite = [area for area in areas if np.isfinite(area)]
    if not finite:
        return float("nan"), float("nan")
    return float(np.quantile(finite, 0.05)), float(np.quantile(finite, 0.95))


def _caught(good: Sequence[float], bad: Sequence[float]) -> float:
    if not good or not bad:
        return float("nan")
    return float(np.mean(np.asarray(bad) < np.quantile(good, _LOST_SHARE)))

"""What the gate on sources can promise: which sources it refuses, and whether their edits are bad.

    tried = list(run_gate_benchmark(editor, hard_sources("validation", 5), parameters))
    gate_figures(tried).auc_foreign

Clean, spoiled and foreign sources (`hard_sources`) are measured as the gate measures them: PSNR of
the source, encoded and decoded, to itself. The scenes among them are edited and judged against
exact answers. An edit is bad that misses the value asked for or has an IoU below 0.75. Only edits
are counted whose exact answer, spoiled as its source is, is itself judged good: what the judge
cannot see past is no fault of the edit.

Measured 2026-11-25 by `fpe bench gate --device cpu`: 48 sources, 168 askable edits of which 47 are
bad, built-in model, 25 steps, float32, one thread of an Intel Xeon. Terms as in GateFigures.

    AUC 0.49 (0.39 to 0.59), within kinds 0.51, foreign 1.00, caught 0.04
    scenes 25.6 dB or more, pictures of another world 18.7 dB or less

So the figure does not predict a bad edit of a picture that the model knows. It tells whether the
model knows the picture at all. Figures that walk the source back through its inversion, at up to
one UNet row a step, predicted no more: where inversion has enough steps, an AUC of 0.50.
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
    """An edit of a source. `is_askable`: the exact answer, spoiled as the source, is good."""

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
    """What the PSNR of a source tells; NaN where there is nothing to compare.

    Attributes:
        auc: chance that a good edit's source has a higher one than a bad one's, 0..1; 0.5 is
            chance.
        auc_low, auc_high: 5 and 95 % of that over sources drawn again with replacement.
        auc_within_kinds: the same among pairs of edits whose sources are of one kind.
        auc_foreign: chance that a clean source has a higher one than a picture of another world.
        caught: share of the bad edits below the threshold under which 5 % of the good ones lie.
        scenes_lowest_db: of all sources that show a scene, spoiled ones too.
        foreign_highest_db: of all pictures of another world. A limit between the two refuses
            exactly these, where there is room.
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
    pictures = [source.picture(parameters.width_px) for source in sources]
    measured = measure_autoencoder(editor, pictures, parameters)
    inversion = editor.invert(pictures, [source.source_prompt for source in sources], parameters)
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
    """What the gate's figure tells of the askable edits, and of foreign sources."""
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
    """The figure of each good edit's source, and of each bad one's."""
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
    """Edits of one source are no independent draws, so whole sources are drawn."""
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

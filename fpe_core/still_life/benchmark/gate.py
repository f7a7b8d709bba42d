"""Whether a source that comes back badly is edited badly: what a reproduction gate can promise.

    tried = list(run_gate_benchmark(editor, hard_sources("validation", 5), parameters))
    for figures in estimate_figures(tried): figures.auc, figures.auc_within_kinds, ...

Clean, spoiled and foreign sources (`hard_sources`) are inverted, every estimate of how well each
comes back is taken, and the scenes among them are edited and judged against exact answers. An edit
is bad that misses the value asked for or has an IoU below 0.75. Only edits are counted whose exact
answer, spoiled as its source is, is itself judged good: what the judge cannot see past is no fault
of the edit.

Measured 2026-11-25 by `fpe bench gate --device cpu`: 48 sources, 168 askable edits of which 47 are
bad, built-in model, 25 steps, float32, one thread of an Intel Xeon. Columns as in EstimateFigures.

    estimate              rows   AUC (5 to 95 %)    within kinds   foreign   rank   caught
    autoencoder_psnr_db      0   0.49 (0.39-0.59)   0.51           1.00       0.47  0.04
    autoencoder_ssim         0   0.44 (0.33-0.56)   0.52           1.00       0.32  0.02
    noise_deviation          0   0.53 (0.39-0.64)   0.56           0.00      -0.31  0.02
    noise_correlation        0   0.63 (0.53-0.73)   0.51           0.85       0.05  0.19
    walked_psnr_db           0   0.58 (0.43-0.70)   0.43           0.76       0.47  0.34
    first_step_db            1   0.54 (0.43-0.63)   0.58           0.35       0.11  0.09
    last_step_db             1   0.58 (0.40-0.72)   0.49           0.02      -0.18  0.32
    probed_steps_db          4   0.60 (0.43-0.71)   0.50           0.00      -0.09  0.32
    inversion_psnr_db       25   0.61 (0.48-0.72)   0.41           0.89       1.00  0.21

So no estimate predicts a bad edit of a picture that the model knows, not even the whole way back:
what little there is comes from inversion in 3 and 5 steps (0.25 of those edits are good, of clean
sources 0.88), which is a parameter of the job and no trait of a source; without these the way back
has an AUC of 0.50. What can be told is whether the model knows the picture at all: scenes came
through the autoencoder with 25.6 dB or more, pictures of another world with 18.7 dB or less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fpe_core.editor import Editor
from fpe_core.inversion import Inversion
from fpe_core.judging.reproduction import measure_reproduction
from fpe_core.parameters import EditParameters
from fpe_core.schedule import ddim_schedule
from fpe_core.scores.pixels import psnr_db, ssim
from fpe_core.still_life.benchmark.edits import BenchmarkEdit, edits_of_scene
from fpe_core.still_life.benchmark.hard_sources import HardSource
from fpe_core.still_life.benchmark.judgement import Judgement, is_good, judge
from fpe_core.still_life.benchmark.measure_scores import area_under_curve
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS

FULL = "inversion_psnr_db"
"""The estimate that the others are measured against: the whole way back."""

_SOURCES_AT_ONCE = 8
_PROBES = 4
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
    """A source, how well it comes back by every estimate (higher = better), and its edits."""

    source: HardSource
    estimates: Mapping[str, float]
    edits: tuple[TriedEdit, ...]


@dataclasses.dataclass(frozen=True)
class EstimateFigures:
    """What an estimate tells.

    Attributes:
        unet_rows: its cost for one source, on top of inversion.
        auc: chance that a good edit's source has more of it than a bad one's, 0..1; 0.5 is chance.
        auc_low, auc_high: 5 and 95 % of that over sources drawn again with replacement.
        auc_within_kinds: the same among pairs of edits whose sources are of one kind.
        auc_foreign: chance that a clean source has more of it than a picture of another world.
        rank_correlation: with FULL, over all sources, -1..1 (Spearman).
        caught: share of the bad edits below the threshold under which 5 % of the good ones lie.
    """

    name: str
    unet_rows: int
    auc: float
    auc_low: float
    auc_high: float
    auc_within_kinds: float
    auc_foreign: float
    rank_correlation: float
    caught: float


def run_gate_benchmark(
    editor: Editor,
    sources: Sequence[HardSource],
    parameters: EditParameters,
    *,
    factors: Iterable[str] = FACTORS,
) -> Iterator[TriedSource]:
    """Inverts, estimates, edits and judges source by source, a few at a time."""
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
    inversion = editor.invert(pictures, [source.source_prompt for source in sources], parameters)
    estimates = estimates_of(editor, inversion)
    asked = [[] if s.is_foreign else edits_of_scene(s.seed, factors) for s in sources]
    result = editor.edit(inversion, [[edit.target_prompt for edit in of] for of in asked])
    for place, source in enumerate(sources):
        outputs = (edit.image for edit in result.edits[place])
        yield TriedSource(
            source,
            {name: values[place] for name, values in estimates.items()},
            tuple(
                TriedEdit(edit, judge(edit, output), _is_askable(source, edit, output.width))
                for edit, output in zip(asked[place], outputs, strict=True)
            ),
        )


def _is_askable(source: HardSource, edit: BenchmarkEdit, size_px: int) -> bool:
    if not source.is_spoiled:
        return True  # the exact answer itself
    return is_good(judge(edit, source.spoil(render(edit.answer, size_px))))


def estimates_of(editor: Editor, inversion: Inversion) -> dict[str, list[float]]:
    """Every estimate of every source of an inversion; higher = comes back better."""
    found, _ = measure_reproduction(editor, inversion)
    decoded = editor.decode(inversion.trajectory[:, 0], inversion.parameters)
    walked = editor.decode(_walked_back(editor, inversion), inversion.parameters)
    return {
        "autoencoder_psnr_db": [each.autoencoder_psnr_db or 0.0 for each in found],
        "autoencoder_ssim": ssim(inversion.images, decoded),
        "noise_deviation": (-(_deviations(inversion.start) - 1).abs()).tolist(),
        "noise_correlation": (-_autocorrelation(inversion.start)).tolist(),
        "walked_psnr_db": psnr_db(decoded, walked),
        "first_step_db": _step_db(editor, inversion, [0]),
        "last_step_db": _step_db(editor, inversion, [inversion.parameters.steps - 1]),
        "probed_steps_db": _step_db(editor, inversion, _probes(inversion.parameters.steps)),
        FULL: [each.inversion_psnr_db or 0.0 for each in found],
    }


def rows_of_estimates(steps: int) -> dict[str, int]:
    """UNet rows that each estimate costs a source, beside its inversion."""
    free = (
        "autoencoder_psnr_db",
        "autoencoder_ssim",
        "noise_deviation",
        "noise_correlation",
        "walked_psnr_db",
    )
    probed = {"first_step_db": 1, "last_step_db": 1, "probed_steps_db": len(_probes(steps))}
    return {**dict.fromkeys(free, 0), **probed, FULL: steps}


def _probes(steps: int) -> list[int]:
    """At most four steps, spread evenly over the trajectory."""
    count = min(_PROBES, steps)
    return [int((place + 0.5) * steps / count) for place in range(count)]


def _walked_back(editor: Editor, inversion: Inversion) -> Tensor:
    """z_0 sampled from z_T without the UNet: at z_(k+1) the noise that inversion found there is
    taken, which is of timestep t_(k+1) and not t_k."""
    trajectory = inversion.trajectory
    config = editor.checkpoint.scheduler_config
    schedule = ddim_schedule(config, inversion.parameters.steps)
    noises = [
        schedule.implied_epsilon(trajectory[:, k], trajectory[:, k + 1], k)
        for k in range(schedule.steps)
    ]
    as_noise = dataclasses.replace(schedule, prediction_type="epsilon")
    z = trajectory[:, -1]
    for k in reversed(range(schedule.steps)):
        z = as_noise.sample_step(z, noises[min(k + 1, schedule.steps - 1)], k)
    return z


def _step_db(editor: Editor, inversion: Inversion, steps: Sequence[int]) -> list[float]:
    """Spread of z_k over the error of one step back to it, dB, mean over some k."""
    ratios = []
    for k in steps:
        z = inversion.trajectory[:, k].flatten(1)
        lost = (editor.step_back(inversion, k).flatten(1) - z).square().mean(dim=1)
        ratios.append(10 * torch.log10(z.var(dim=1) / lost.clamp_min(1e-12)))
    means: list[float] = torch.stack(ratios).mean(dim=0).tolist()
    return means


def _deviations(z: Tensor) -> Tensor:
    """(S,) standard deviation of everything in a latent; of white noise 1."""
    return z.flatten(1).std(dim=1)


def _autocorrelation(z: Tensor) -> Tensor:
    """(S,) mean absolute correlation of direct neighbours, over channels; of white noise near 0."""
    z = z - z.mean(dim=(2, 3), keepdim=True)
    across = (z[..., 1:] * z[..., :-1]).mean(dim=(2, 3))
    along = (z[..., 1:, :] * z[..., :-1, :]).mean(dim=(2, 3))
    power = z.square().mean(dim=(2, 3)).clamp_min(1e-12)
    return ((across.abs() + along.abs()) / (2 * power)).mean(dim=1)


def estimate_figures(tried: Sequence[TriedSource], steps: int) -> list[EstimateFigures]:
    """What each estimate tells of the askable edits; NaN where there is nothing to compare."""
    rows = rows_of_estimates(steps)
    full = [source.estimates[FULL] for source in tried]
    return [_figures(name, rows[name], tried, full) for name in rows]


def _figures(
    name: str, rows: int, tried: Sequence[TriedSource], full: Sequence[float]
) -> EstimateFigures:
    values = [source.estimates[name] for source in tried]
    low, high = _interval(name, tried)
    return EstimateFigures(
        name=name,
        unet_rows=rows,
        auc=_auc(name, tried),
        auc_low=low,
        auc_high=high,
        auc_within_kinds=_auc_within_kinds(name, tried),
        auc_foreign=_area(
            [v for v, source in zip(values, tried, strict=True) if source.source.kind == "clean"],
            [v for v, source in zip(values, tried, strict=True) if source.source.is_foreign],
        ),
        rank_correlation=_rank_correlation(values, full),
        caught=_caught(*_good_and_bad(name, tried)),
    )


def _good_and_bad(name: str, tried: Iterable[TriedSource]) -> tuple[list[float], list[float]]:
    """The estimate of each good edit's source, and of each bad one's."""
    good: list[float] = []
    bad: list[float] = []
    for source in tried:
        for edit in source.edits:
            if edit.is_askable:
                (good if edit.is_good else bad).append(source.estimates[name])
    return good, bad


def _auc(name: str, tried: Iterable[TriedSource]) -> float:
    return _area(*_good_and_bad(name, tried))


def _area(higher: Sequence[float], lower: Sequence[float]) -> float:
    return area_under_curve(higher, lower) if higher and lower else float("nan")


def _auc_within_kinds(name: str, tried: Sequence[TriedSource]) -> float:
    pairs = area = 0.0
    for kind in {source.source.kind for source in tried}:
        good, bad = _good_and_bad(name, [each for each in tried if each.source.kind == kind])
        if good and bad:
            area += area_under_curve(good, bad) * len(good) * len(bad)
            pairs += len(good) * len(bad)
    return area / pairs if pairs else float("nan")


def _interval(name: str, tried: Sequence[TriedSource]) -> tuple[float, float]:
    """Edits of one source are no independent draws, so whole sources are drawn."""
    rng = np.random.default_rng(0)
    drawn = (rng.integers(len(tried), size=len(tried)) for _ in range(_RESAMPLES))
    areas = [_auc(name, [tried[place] for place in places]) for places in drawn]
    finite = [area for area in areas if np.isfinite(area)]
    if not finite:
        return float("nan"), float("nan")
    return float(np.quantile(finite, 0.05)), float(np.quantile(finite, 0.95))


def _caught(good: Sequence[float], bad: Sequence[float]) -> float:
    if not good or not bad:
        return float("nan")
    return float(np.mean(np.asarray(bad) < np.quantile(good, _LOST_SHARE)))


def _rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; NaN where either is the same for all."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return float("nan")
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0, ties their mean."""
    array = np.asarray(values)
    return [float(np.mean(np.flatnonzero(np.sort(array) == value))) for value in array]

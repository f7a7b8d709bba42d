"""The counterfactual benchmark: edits held-out scenes in several ways and judges every output.

    arms = [Arm("default", parameters), Arm("all", all_layers)]
    for result in run_benchmark(editor, seeds_of("test", 48), arms):
        ...

A scene is inverted once for all of its edits and arms with the same steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from fpe_core.editor import Editor
from fpe_core.inversion import Inversion
from fpe_core.parameters import EditParameters
from fpe_core.still_life.benchmark.edits import BenchmarkEdit, edits_of_scene
from fpe_core.still_life.benchmark.judgement import Judgement, as_unit, judge, psnr_db
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS, caption, sample_scene
from fpe_core.unet.row_limit import RowLimit

_SCENES_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class Arm:
    """One set of parameters to compare with others."""

    name: str
    parameters: EditParameters


@dataclasses.dataclass(frozen=True)
class Floors:
    """How well a scene is reconstructed without being edited: PSNR to the source, dB.

    Attributes:
        autoencoder_psnr_db: encoded and decoded.
        inversion_psnr_db: encoded, inverted, sampled again with the source prompt, decoded; no
            guidance, nothing replaced.
    """

    seed: int
    autoencoder_psnr_db: float
    inversion_psnr_db: float


@dataclasses.dataclass(frozen=True)
class JudgedOutput:
    """One output of one arm."""

    arm: str
    edit: BenchmarkEdit
    output: Image.Image
    judgement: Judgement


@dataclasses.dataclass(frozen=True)
class FactorFigures:
    """Means over the edits of one factor by one arm; `kept_psnr_db` over those that have one."""

    edits: int
    success: float
    structure: float
    score: float
    psnr_db: float
    kept_psnr_db: float | None


def run_benchmark(
    editor: Editor,
    seeds: Sequence[int],
    arms: Sequence[Arm],
    *,
    factors: Iterable[str] = FACTORS,
    with_source_prompt: bool = True,
) -> Iterator[JudgedOutput]:
    """Edits every factor of every scene with every arm; a few scenes at a time, arms in turn.

    `with_source_prompt` False inverts without a prompt, as for images without a caption.
    """
    factors = tuple(factors)
    for chunk in _chunks(seeds):
        edits = [edits_of_scene(seed, factors) for seed in chunk]
        inversions: dict[tuple[int, int, int], Inversion] = {}
        for arm in arms:
            key = (arm.parameters.steps, arm.parameters.width_px, arm.parameters.height_px)
            if key not in inversions:
                inversions[key] = _invert(editor, chunk, arm.parameters, with_source_prompt)
            prompts = [[edit.target_prompt for edit in of_scene] for of_scene in edits]
            result = editor.edit(inversions[key], prompts, arm.parameters)
            for of_scene, outputs in zip(edits, result.edits, strict=True):
                for edit, output in zip(of_scene, outputs, strict=True):
                    yield JudgedOutput(arm.name, edit, output.image, judge(edit, output.image))


def measure_floors(
    editor: Editor, seeds: Sequence[int], parameters: EditParameters
) -> Iterator[Floors]:
    """How well the seeds' scenes are reconstructed, with their captions as prompts."""
    plain = dataclasses.replace(parameters, guidance_scale=1.0, replaced_fraction=0.0)
    for chunk in _chunks(seeds):
        inversion = _invert(editor, chunk, plain, with_prompt=True)
        limit = RowLimit(_SCENES_AT_ONCE)
        decoded, _ = editor.autoencoder.decode(
            editor.autoencoder.encode(inversion.images, limit), limit
        )
        again = editor.edit(inversion, [[prompt] for prompt in inversion.source_prompts], plain)
        for seed, source, first, (second,) in zip(
            chunk, inversion.images, decoded, again.edits, strict=True
        ):
            truth = as_unit(source)
            yield Floors(
                seed, psnr_db(as_unit(first), truth), psnr_db(as_unit(second.image), truth)
            )


def figures_by_factor(edits: Iterable[JudgedOutput]) -> dict[tuple[str, str], FactorFigures]:
    """(arm, factor) to its means, in order of first appearance."""
    groups: dict[tuple[str, str], list[Judgement]] = {}
    for judged in edits:
        groups.setdefault((judged.arm, judged.edit.factor), []).append(judged.judgement)
    return {key: _means(judgements) for key, judgements in groups.items()}


def mean_scores(edits: Iterable[JudgedOutput]) -> dict[str, float]:
    """Arm to its success x structure, each factor counting the same, 0..1."""
    scores: dict[str, list[float]] = {}
    for (arm, _), figures in figures_by_factor(edits).items():
        scores.setdefault(arm, []).append(figures.score)
    return {arm: float(np.mean(values)) for arm, values in scores.items()}


def _means(judgements: Sequence[Judgement]) -> FactorFigures:
    kept = [each.kept_psnr_db for each in judgements if each.kept_psnr_db is not None]
    return FactorFigures(
        edits=len(judgements),
        success=float(np.mean([each.success for each in judgements])),
        structure=float(np.mean([each.structure for each in judgements])),
        score=float(np.mean([each.score for each in judgements])),
        psnr_db=float(np.mean([each.psnr_db for each in judgements])),
        kept_psnr_db=float(np.mean(kept)) if kept else None,
    )


def _invert(
    editor: Editor, seeds: Sequence[int], parameters: EditParameters, with_prompt: bool
) -> Inversion:
    scenes = [sample_scene(seed) for seed in seeds]
    prompts = [caption(scene) for scene in scenes] if with_prompt else None
    return editor.invert(
        [render(scene, parameters.width_px) for scene in scenes], prompts, parameters
    )


def _chunks(seeds: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(seeds), _SCENES_AT_ONCE):
        yield seeds[first : first + _SCENES_AT_ONCE]

"""The counterfactual benchmark: edits held-out scenes in several ways and judges every output.

    arms = [Arm("default", parameters), Arm("all", all_layers)]
    for result in run_benchmark(editor, seeds_of("test", 48), arms):
        ...

A scene is inverted once for all of its edits and arms with the same steps. Arms may have any
editing method; what a method needs besides prompts comes from `Arm.inputs`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from fpe_core.editor import Editor
from fpe_core.editors.method import NOTHING, EditInputs
from fpe_core.inversion import Inversion
from fpe_core.parameters import EditParameters
from fpe_core.row_formulas import row_counts
from fpe_core.still_life.benchmark.edits import BenchmarkEdit, edits_of_scene
from fpe_core.still_life.benchmark.judgement import Judgement, as_unit, judge, psnr_db
from fpe_core.still_life.render import render
from fpe_core.still_life.scene import FACTORS, caption, sample_scene
from fpe_core.unet.row_limit import RowLimit

_SCENES_AT_ONCE = 8


Inputs = Callable[[BenchmarkEdit, int], EditInputs]
"""An edit, and the side of its image in pixels, to what a method is given besides prompts."""


def no_inputs(_edit: BenchmarkEdit, _size_px: int) -> EditInputs:
    """Nothing besides prompts."""
    return NOTHING


@dataclasses.dataclass(frozen=True)
class Arm:
    """One set of parameters to compare with others, and what edits are given besides prompts.

    Attributes:
        inputs: what each edit is given.
        needs: attributes of `EditInputs` that an edit must have for this arm, although its method
            can do without.
    """

    name: str
    parameters: EditParameters
    inputs: Inputs = no_inputs
    needs: frozenset[str] = frozenset()

    def not_applicable(self, edit: BenchmarkEdit, source_prompt: str) -> str:
        """Why the arm's method cannot make this edit, in words; "" if it can."""
        given = self.inputs(edit, self.parameters.width_px)
        for need in sorted(self.needs):
            if getattr(given, need) is None:
                return f"no {need.replace('_', ' ')}"
        method = self.parameters.method
        return method.not_applicable(source_prompt, edit.prompt_for(method), given)


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
    """One output of one arm.

    Attributes:
        unet_rows: its share of the UNet rows, with the inversion that its method needs; the edits
            of a scene by one arm share an inversion.
        seconds: its share of the time for the same, until the image is there.
    """

    arm: str
    edit: BenchmarkEdit
    output: Image.Image
    judgement: Judgement
    unet_rows: float = 0.0
    seconds: float = 0.0


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

    `with_source_prompt` False inverts without a prompt, as for images without a caption. An edit
    that an arm's method cannot make (`Arm.not_applicable`) is left out.
    """
    factors = tuple(factors)
    for chunk in _chunks(seeds):
        edits = [edits_of_scene(seed, factors) for seed in chunk]
        inverted: dict[tuple[object, ...], _Inverted] = {}
        for arm in arms:
            key = _inversion_key(arm)
            if key not in inverted:
                alike = [each.parameters for each in arms if _inversion_key(each) == key]
                deepest = max(alike, key=lambda each: each.inverted_steps)
                began = time.perf_counter()
                inversion = _invert(editor, chunk, deepest, with_source_prompt)
                inverted[key] = _Inverted(inversion, time.perf_counter() - began)
            yield from _edit(editor, inverted[key], edits, arm)


@dataclasses.dataclass(frozen=True)
class _Inverted:
    """The sources of a chunk, and how long all of it took."""

    inversion: Inversion
    seconds: float

    def cost(self, scenes: int, parameters: EditParameters) -> tuple[float, float]:
        """(UNet rows, seconds) of inverting so many scenes, as deep as the parameters need."""
        each = 1 / len(self.inversion)
        deepest = self.inversion.trajectory.shape[1] - 1
        share = parameters.inverted_steps / deepest if deepest else 1.0
        rows = self.inversion.unet_rows * each  # null-text inversion takes what it takes
        if parameters.inversion != "null_text":
            counted = (
                row_counts(parameters, [], source_prompt=prompt).inversion
                for prompt in self.inversion.source_prompts
            )
            rows = sum(counted) * each
        return scenes * rows, scenes * self.seconds * each * share


def _edit(
    editor: Editor, inverted: _Inverted, edits: Sequence[Sequence[BenchmarkEdit]], arm: Arm
) -> Iterator[JudgedOutput]:
    """The applicable edits of a chunk by one arm, judged, scene by scene."""
    parameters = arm.parameters
    asked = [
        [edit for edit in of_scene if not arm.not_applicable(edit, prompt)]
        for of_scene, prompt in zip(edits, inverted.inversion.source_prompts, strict=True)
    ]
    count = sum(map(len, asked))
    if not count:
        return
    began = time.perf_counter()
    result = editor.edit(
        inverted.inversion,
        [[edit.prompt_for(parameters.method) for edit in of_scene] for of_scene in asked],
        parameters,
        [[arm.inputs(edit, parameters.width_px) for edit in of_scene] for of_scene in asked],
    )
    seconds = time.perf_counter() - began
    rows, inverting = inverted.cost(sum(map(bool, asked)), parameters)
    for of_scene, outputs in zip(asked, result.edits, strict=True):
        for edit, output in zip(of_scene, outputs, strict=True):
            yield JudgedOutput(
                arm.name,
                edit,
                output.image,
                judge(edit, output.image),
                unet_rows=(rows + result.unet_rows) / count,
                seconds=(inverting + seconds) / count,
            )


def _inversion_key(arm: Arm) -> tuple[object, ...]:
    """Arms with the same key share an inversion."""
    own = arm.parameters
    kind: tuple[object, ...] = (own.rule.cross_guidance is not None,)
    if own.inversion == "null_text":
        kind = own.inversion, own.guidance_scale, own.guidance_interval
    elif own.inversion == "edit_friendly":
        kind = own.inversion, own.source_guidance_scale, own.negative_prompt
    return own.steps, own.width_px, own.height_px, *kind


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

"""Chooses a model's parameters on the validation split and records them with the model:
`python -m fpe_core.still_life.train.choose_defaults CHECKPOINT`.

First every choice of layers with every replaced fraction, then guidance at the best of those. The
best has the highest success x structure, each factor counting the same. `fpe_defaults.json` gets
the choice, `validation.json` everything that was tried.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.load import load_checkpoint
from fpe_core.editor import Editor
from fpe_core.layer_rules import LayersByRange
from fpe_core.parameters import EditParameters
from fpe_core.still_life.benchmark.benchmark import (
    Arm,
    FactorFigures,
    figures_by_factor,
    mean_scores,
    run_benchmark,
)
from fpe_core.still_life.benchmark.edits import seeds_of
from fpe_core.still_life.train.progress import write_json

log = logging.getLogger(__name__)

DEFAULTS_FILE, VALIDATION_FILE = "fpe_defaults.json", "validation.json"


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values that are tried."""

    layers: Sequence[tuple[int, int]] = ((1, 16), (3, 13), (4, 14), (8, 16), (12, 16))
    fractions: Sequence[float] = (0.2, 0.4, 0.6, 0.8)
    guidance_scales: Sequence[float] = (2.5, 4.0, 5.5, 7.5)
    first_guidance_scale: float = 4.0


def choose_defaults(checkpoint: Path, *, scenes: int, grid: Grid | None = None) -> EditParameters:
    """Tries the grid on the validation split's first scenes and writes both files.

    Steps and size stay as the checkpoint recommends them.
    """
    grid = grid or Grid()
    editor = Editor(load_checkpoint(checkpoint), max_rows=32)
    start = editor.checkpoint.default_parameters
    places = [
        dataclasses.replace(
            start,
            layers=LayersByRange(*layers),
            replaced_fraction=fraction,
            guidance_scale=grid.first_guidance_scale,
        )
        for layers, fraction in itertools.product(grid.layers, grid.fractions)
    ]
    tried = _try(editor, places, scenes)
    guided = [
        dataclasses.replace(_best(tried), guidance_scale=scale)
        for scale in grid.guidance_scales
        if scale != grid.first_guidance_scale
    ]
    tried |= _try(editor, guided, scenes)
    chosen = _best(tried)
    rows = [_row(parameters, *found) for parameters, found in tried.items()]
    rows.sort(key=lambda row: -row["score"])
    write_json(
        checkpoint / VALIDATION_FILE,
        {"first_seed": seeds_of("validation", scenes)[0], "scenes": scenes, "tried": rows},
    )
    write_json(checkpoint / DEFAULTS_FILE, recommendation(chosen))
    return chosen


def recommendation(parameters: EditParameters) -> dict[str, Any]:
    """Parameters of square images as a checkpoint's `fpe_defaults.json` holds them."""
    values = parameters.to_dict()
    size_px, _ = values.pop("width_px"), values.pop("height_px")
    return {"size_px": size_px, **values}


_Tried = dict[EditParameters, tuple[float, dict[str, FactorFigures]]]


def _try(editor: Editor, places: Sequence[EditParameters], scenes: int) -> _Tried:
    """Parameters to mean score and figures by factor."""
    arms = [Arm(str(number), parameters) for number, parameters in enumerate(places)]
    judged = list(run_benchmark(editor, seeds_of("validation", scenes), arms))
    means, by_factor = mean_scores(judged), figures_by_factor(judged)
    tried: _Tried = {}
    for arm in arms:
        own = {factor: each for (name, factor), each in by_factor.items() if name == arm.name}
        tried[arm.parameters] = means[arm.name], own
        log.info("%.3f %s", means[arm.name], recommendation(arm.parameters))
    return tried


def _best(tried: _Tried) -> EditParameters:
    return max(tried, key=lambda parameters: tried[parameters][0])


def _row(
    parameters: EditParameters, score: float, factors: dict[str, FactorFigures]
) -> dict[str, Any]:
    return {
        "score": round(score, 4),
        "guidance_scale": parameters.guidance_scale,
        "layers": str(parameters.layers),
        "replaced_fraction": parameters.replaced_fraction,
        **{
            factor: {"success": round(each.success, 3), "structure": round(each.structure, 3)}
            for factor, each in factors.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--scenes", type=int, default=16)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.info("chosen: %s", choose_defaults(chosen.checkpoint, scenes=chosen.scenes).to_dict())


if __name__ == "__main__":
    main()

"""Chooses both guidance scales of a model with instructions on the validation split, measures it on
test scenes, and records all of it with the model:
`python -m fpe_core.still_life.train.choose_instruct CHECKPOINT`.

The best setting has the highest success x structure, each factor counting the same.
`fpe_defaults.json` gets the choice, `validation.json` everything that was tried, and
`training.json` the figures of the test scenes by factor ("held_out").
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpe_core.checkpoint.load import load_checkpoint
from fpe_core.editor import Editor
from fpe_core.editors.instruct_pix2pix import InstructPix2Pix
from fpe_core.parameters import EditParameters
from fpe_core.still_life.benchmark.benchmark import (
    Arm,
    FactorFigures,
    figures_by_factor,
    mean_scores,
    run_benchmark,
)
from fpe_core.still_life.benchmark.edit_inputs import true_inputs
from fpe_core.still_life.benchmark.edits import seeds_of
from fpe_core.still_life.train.choose_defaults import (
    DEFAULTS_FILE,
    VALIDATION_FILE,
    recommendation,
)
from fpe_core.still_life.train.progress import write_json

log = logging.getLogger(__name__)

TRAINING_FILE = "training.json"
_ARM = "instruct"


@dataclasses.dataclass(frozen=True)
class ScaleGrid:
    """The values that are tried, every one with every other."""

    guidance_scales: Sequence[float] = (1.0, 2.0, 3.0, 5.0)
    image_guidance_scales: Sequence[float] = (1.0, 1.5)


def choose_scales(
    checkpoint: Path, *, scenes: int, test_scenes: int, grid: ScaleGrid | None = None
) -> EditParameters:
    """Tries the grid on the first validation scenes, measures the best setting, writes all files.

    Steps and size stay as the checkpoint recommends them.

    Args:
        checkpoint: a diffusers folder, as `fpe_core.still_life.train.instruct` exports it.
        scenes, test_scenes: how many scenes, 1..1000; five edits of each.
    """
    grid = grid or ScaleGrid()
    editor = Editor(load_checkpoint(checkpoint, dtype="float32"), max_rows=32)
    tried: list[tuple[EditParameters, float, dict[str, FactorFigures]]] = []
    for scale, image in itertools.product(grid.guidance_scales, grid.image_guidance_scales):
        parameters = dataclasses.replace(
            editor.checkpoint.default_parameters,
            guidance_scale=scale,
            editor=InstructPix2Pix(image),
        )
        tried.append((parameters, *measure(editor, parameters, "validation", scenes)))
        log.info("%.3f guidance %g, image %g", tried[-1][1], scale, image)
    tried.sort(key=lambda each: -each[1])
    chosen = tried[0][0]
    score, by_factor = measure(editor, chosen, "test", test_scenes)
    log.info("test scenes: %.3f %s", score, _figures(by_factor))
    write_json(
        checkpoint / VALIDATION_FILE,
        {
            "first_seed": seeds_of("validation", scenes)[0],
            "scenes": scenes,
            "tried": [_row(*each) for each in tried],
        },
    )
    write_json(checkpoint / DEFAULTS_FILE, recommendation(chosen))
    training = json.loads((checkpoint / TRAINING_FILE).read_text(encoding="utf-8"))
    training["held_out"] = {
        "first_seed": seeds_of("test", test_scenes)[0],
        "scenes": test_scenes,
        "score": round(score, 4),
        **_figures(by_factor),
    }
    write_json(checkpoint / TRAINING_FILE, training)
    return chosen


def measure(
    editor: Editor, parameters: EditParameters, split: str, scenes: int
) -> tuple[float, dict[str, FactorFigures]]:
    """(mean score, figures by factor) of a setting on a split's first scenes."""
    judged = list(
        run_benchmark(editor, seeds_of(split, scenes), [Arm(_ARM, parameters, true_inputs)])
    )
    return mean_scores(judged)[_ARM], {
        factor: each for (_, factor), each in figures_by_factor(judged).items()
    }


def _row(
    parameters: EditParameters, score: float, by_factor: dict[str, FactorFigures]
) -> dict[str, Any]:
    method = parameters.method
    assert isinstance(method, InstructPix2Pix)
    return {
        "score": round(score, 4),
        "guidance_scale": parameters.guidance_scale,
        "image_guidance_scale": method.image_guidance_scale,
        **_figures(by_factor),
    }


def _figures(by_factor: dict[str, FactorFigures]) -> dict[str, Any]:
    return {
        factor: {
            "success": round(each.success, 3),
            "structure": round(each.structure, 3),
            "psnr_db": round(each.psnr_db, 2),
            "kept_psnr_db": None if each.kept_psnr_db is None else round(each.kept_psnr_db, 2),
        }
        for factor, each in by_factor.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="the exported model")
    parser.add_argument("--scenes", type=int, default=8, help="validation scenes")
    parser.add_argument("--test-scenes", type=int, default=40, help="test scenes")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    choose_scales(chosen.checkpoint, scenes=chosen.scenes, test_scenes=chosen.test_scenes)


if __name__ == "__main__":
    main()

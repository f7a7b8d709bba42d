"""Choosing a model's parameters: what is tried and recorded, and that the best is chosen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fpe_core import EditParameters, LayersByRange, checkpoint_defaults
from fpe_core.still_life import FACTORS
from fpe_core.still_life.train.choose_defaults import Grid, choose_defaults, recommendation
from tests.builders.tiny_checkpoint import write_defaults

GRID = Grid(
    layers=((1, 16), (3, 13)),
    fractions=(0.0, 0.5),
    guidance_scales=(1.0, 2.0),
    first_guidance_scale=2.0,
)


@pytest.fixture
def checkpoint(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    write_defaults(folder, steps=2, size_px=64)
    return folder


def test_the_best_of_everything_tried_is_recorded_with_the_model(checkpoint: Path) -> None:
    chosen = choose_defaults(checkpoint, scenes=2, grid=GRID)
    assert checkpoint_defaults(checkpoint) == chosen
    assert (chosen.steps, chosen.width_px) == (2, 64)
    record = json.loads((checkpoint / "validation.json").read_text())
    assert (record["first_seed"], record["scenes"]) == (3000, 2)
    tried = record["tried"]
    assert len(tried) == 2 * 2 + 1
    assert [row["score"] for row in tried] == sorted((row["score"] for row in tried), reverse=True)
    best = [row for row in tried if row["score"] == tried[0]["score"]]
    assert (str(chosen.layers), chosen.replaced_fraction, chosen.guidance_scale) in [
        (row["layers"], row["replaced_fraction"], row["guidance_scale"]) for row in best
    ]
    assert set(FACTORS) < set(tried[0])
    assert set(tried[0]["colour"]) == {"success", "structure"}


def test_a_recommendation_is_read_back_as_the_same_parameters(checkpoint: Path) -> None:
    parameters = EditParameters(
        steps=7, guidance_scale=3.5, layers=LayersByRange(2, 9), width_px=64, height_px=64
    )
    (checkpoint / "fpe_defaults.json").write_text(json.dumps(recommendation(parameters)))
    assert checkpoint_defaults(checkpoint) == parameters

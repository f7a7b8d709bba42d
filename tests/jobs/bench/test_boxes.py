"""`fpe bench boxes`: thresholds, what they do, and what the command prints."""

from __future__ import annotations

import dataclasses
import pathlib
from collections import Counter

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fpe_core.judging.region_verdict import BOX_RULE, MASK_RULE, RegionVerdict, VerdictRule
from fpe_core.scores.regions import region_of_box, region_of_mask
from fpe_core.still_life.benchmark.edits import BenchmarkEdit, edits_of_scene, seeds_of
from fpe_core.still_life.benchmark.regions import RegionSample, box_around, box_iou, moved_samples
from fpe_core.still_life.render import object_mask, render
from fpe_core.still_life.scene import Scene
from jobs.bench.box_figures import REGIONS, SAMPLES_SCHEMA, figures, fit_rule, separation
from jobs.cli import app
from jobs.terminal.exits import OK


def sample(iou: float, score: float) -> RegionSample:
    return RegionSample("moved", "colour", iou, 1.0 - iou, {"box": score, "mask": 1.0 - score})


HELD = [sample(0.9, 0.6 + number / 100) for number in range(20)]
LOST = [sample(0.1, 0.2 + number / 100) for number in range(20)]
NEAR = [sample(0.1, 0.7), sample(0.9, 0.3)]


def test_thresholds_keep_and_drop_as_much_as_they_may() -> None:
    clean = fit_rule([*HELD, *LOST[:-1]], "box")
    assert clean == VerdictRule(0.38, 0.38), "one that is lost among 21 kept is allowed"
    found = figures([*HELD, *LOST[:-1]], "box", clean)
    assert (found.kept_holds, found.dropped_lost) == (pytest.approx(20 / 21), 1.0)
    assert found.kept + found.dropped == pytest.approx(1.0)
    mixed = fit_rule([*HELD, *LOST, *NEAR], "box")
    found = figures([*HELD, *LOST, *NEAR], "box", mixed)
    assert found.kept_holds is not None
    assert found.kept_holds >= 0.95
    assert found.dropped_lost is not None
    assert found.dropped_lost >= 0.9


def test_where_nothing_holds_nothing_is_kept() -> None:
    rule = fit_rule(LOST, "box")
    assert figures(LOST, "box", rule).kept == 0
    assert separation(LOST, "box", "box") is None


def test_a_mask_is_judged_by_its_own_truth() -> None:
    assert separation([*HELD, *LOST], "box", "box") == 1.0
    assert separation([*HELD, *LOST], "mask", "mask") == 1.0
    assert separation([*HELD, *LOST], "mask", "box") == 0.0


@pytest.mark.parametrize(
    ("visible", "structure", "verdict"),
    [
        (0.0, None, RegionVerdict.DROP),
        (1.0, None, RegionVerdict.REVIEW),
        (1.0, 0.8, RegionVerdict.KEEP),
        (1.0, 0.79, RegionVerdict.REVIEW),
        (1.0, 0.49, RegionVerdict.DROP),
        (0.29, 0.9, RegionVerdict.REVIEW),
        (0.29, 0.1, RegionVerdict.DROP),
    ],
)
def test_verdicts(visible: float, structure: float | None, verdict: RegionVerdict) -> None:
    assert VerdictRule(0.8, 0.5, 0.3).verdict(visible, structure) == verdict


# --- the rules of a job, held to the renderer's own masks -----------------------------------------


@pytest.fixture(scope="module")
def moved() -> list[RegionSample]:
    """Objects moved, grown and turned, a little or a lot, in test scenes: 300 pictures."""
    return list(moved_samples(seeds_of("test", 60)))


@pytest.mark.parametrize("region", ["box", "mask"])
def test_what_is_kept_holds_and_what_is_dropped_does_not(
    region: str, moved: list[RegionSample]
) -> None:
    found = figures(moved, region, REGIONS[region])
    assert 0.2 < found.holds < 0.8, "both kinds are there"
    assert found.kept > 0.1
    assert found.dropped > 0.1
    assert found.kept_holds is not None
    assert found.kept_holds >= 0.9
    assert found.dropped_lost is not None
    assert found.dropped_lost >= 0.85


def test_an_object_that_stays_is_kept_and_one_that_leaves_is_not() -> None:
    """Exact answers of edits of colour and background; then with the object elsewhere."""
    edits = [
        edit
        for seed in seeds_of("test", 12)
        for edit in edits_of_scene(seed, ("colour", "background"))
    ]
    stayed = [verdict for edit in edits for verdict in verdicts_on(edit, edit.answer)]
    assert set(stayed) == {RegionVerdict.KEEP}
    left = [verdict for edit in edits for verdict in verdicts_on(edit, elsewhere(edit.answer))]
    assert RegionVerdict.KEEP not in left
    assert Counter(left)[RegionVerdict.DROP] > 0.8 * len(left)


def elsewhere(scene: Scene) -> Scene:
    """Its object in the other half of the picture."""
    return dataclasses.replace(scene, centre_x=scene.centre_x + (-0.4, 0.4)[scene.centre_x < 0.5])


def verdicts_on(edit: BenchmarkEdit, answer: Scene) -> tuple[RegionVerdict, RegionVerdict]:
    """By the defaults of a job, on the source's true box and mask."""
    source, picture, mask = render(edit.source), render(answer), object_mask(edit.source)
    box = box_around(mask)
    assert box is not None
    return (
        BOX_RULE.verdict(1.0, region_of_box(source, box).structure_in(picture)),
        MASK_RULE.verdict(1.0, region_of_mask(source, mask).structure_in(picture)),
    )


def test_an_object_that_is_not_there_has_no_box() -> None:
    assert box_iou(None, None) == 0.0


def test_it_prints_and_writes(tiny_checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> None:
    where = ("--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path))
    command = ("bench", "boxes", "--scenes", "1", "--moved", "1", *where)
    result = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert result.exit_code == OK
    for word in ("box holds, moved", "mask holds, model", "ViT", "keep_at_least=", "defaults"):
        assert word in result.stdout
    table = pq.read_table(tmp_path / "regions.parquet")
    assert table.schema.equals(SAMPLES_SCHEMA)
    assert table["kind"].to_pylist().count("model") == 2 * 15
    assert table["kind"].to_pylist().count("moved") == 2 * 5
    assert min(table["mask"].to_pylist()) >= 0
    assert max(table["box"].to_pylist()) <= 1

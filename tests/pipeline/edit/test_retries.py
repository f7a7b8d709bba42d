"""Retries in the editing actor: from one inversion, bounded in number, all recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fpe_core import EditParameters, LayersByRange, checkpoint_fingerprint
from fpe_core.judging.retry_ladder import Change, RetryLadder
from fpe_core.judging.rules import RejectReason, Rule, Rules
from pipeline.edit.actor import EditActor
from pipeline.edit.settings import EditSettings
from pipeline.judge.judge import JudgeSettings
from pipeline.ledger.outcome import OUTCOME_SCHEMA
from pipeline.read.decode import DecodeSettings, decode
from pipeline.run.stats import RunTotals
from pipeline.write.metadata import MetadataLayout, parameters_of_columns
from pipeline.write.provenance import read_provenance
from tests.builders.work_rows import PARAMETERS, work_row, work_table

PROMPTS = ("a red cat", "a blue dog")
NOTHING = Change(replaced_fraction=0.0)
ALL = Change(layers=LayersByRange(1, 16), replaced_fraction=1.0)
UP = RetryLadder({RejectReason.NO_CHANGE: (NOTHING, ALL)}, most=2)
NEVER = Rules.from_dict(
    {"other": [{"score": "changed_share", "at_least": 2.0, "reason": "no_change"}]}
)
GUIDED = 2 * PARAMETERS.steps

Rows = list[dict[str, Any]]
Edit = Callable[..., Rows]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def block(
    picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]
) -> Callable[..., pa.Table]:
    def make(*targets: str, count: int = 1, parameters: EditParameters = PARAMETERS) -> pa.Table:
        rows = [
            work_row(
                n,
                image_bytes=png(picture(n)),
                source_prompt="a cat",
                targets=targets,
                parameters=parameters,
            )
            for n in range(count)
        ]
        return decode(work_table(rows), DecodeSettings())

    return make


@pytest.fixture
def edit(tiny_checkpoint: Path, root: Path) -> Edit:
    def make(
        table: pa.Table, rules: Rules, ladder: RetryLadder | None = UP, folder: Path = root
    ) -> Rows:
        judge = JudgeSettings(
            clip=None, structure=None, scores=("psnr_db", "changed_share"), rules=rules
        )
        actor = EditActor(
            EditSettings(
                output=str(folder),
                checkpoint=str(tiny_checkpoint),
                checkpoint_fingerprint=checkpoint_fingerprint(tiny_checkpoint),
                device="cpu",
                write_threads=2,
                layout=MetadataLayout(judged=True),
                judge=replace(judge, ladder=ladder),
            )
        )
        outcomes: Rows = actor(table).to_pylist()
        return outcomes

    return make


def metadata(root: Path) -> Rows:
    return [
        row
        for file in root.glob("part-*/metadata.parquet")
        for row in pq.read_table(file).to_pylist()
    ]


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def above(psnr_db: float) -> Rules:
    """Edits nearer to their source than this are accepted."""
    return Rules({"other": (Rule("psnr_db", RejectReason.NO_CHANGE, at_least=psnr_db),)})


def test_every_try_is_recorded_and_the_first_stays_where_none_is_accepted(
    edit: Edit, block: Callable[..., pa.Table], root: Path, tmp_path: Path
) -> None:
    outcomes = edit(block(*PROMPTS), NEVER)
    alone = edit(block(*PROMPTS), NEVER, None, tmp_path / "alone")
    for outcome, once in zip(outcomes, alone, strict=True):
        assert (outcome["outcome"], outcome["reason"]) == ("rejected", "no_change")
        assert [each["reason"] for each in outcome["tries"]] == ["no_change"] * 3
        made_with = [
            EditParameters.from_dict(json.loads(t["parameters"])) for t in outcome["tries"]
        ]
        assert made_with == [
            PARAMETERS,
            NOTHING.applied_to(PARAMETERS),
            ALL.applied_to(PARAMETERS),
        ]
        assert once["tries"] is None
        assert outcome["psnr_db"] == once["psnr_db"] == outcome["tries"][0]["psnr_db"]
        assert len({each["psnr_db"] for each in outcome["tries"]}) == 3
        stored, first = (
            pixels(folder / o["edited_file_name"])
            for folder, o in ((root, outcome), (tmp_path / "alone", once))
        )
        assert np.array_equal(stored, first)


def test_the_inversion_is_not_paid_again(edit: Edit, block: Callable[..., pa.Table]) -> None:
    """A retry costs its own rows, and the source's where maps are replaced."""
    outcomes = edit(block(*PROMPTS, count=2), NEVER)
    two_edits = 1 + 2 * (GUIDED - 1)  # of one source: the first unconditional row is one
    first = PARAMETERS.steps + PARAMETERS.replaced_steps + two_edits
    nothing_replaced = two_edits
    all_replaced = PARAMETERS.steps + two_edits
    expected = 2 * (first + nothing_replaced + all_replaced)
    assert sum(outcome["unet_rows"] for outcome in outcomes) == pytest.approx(expected)
    for outcome in outcomes:
        by_try = sum(each["unet_rows"] for each in outcome["tries"])
        assert outcome["unet_rows"] == pytest.approx(by_try)


def test_the_accepted_try_is_the_edit(
    edit: Edit, block: Callable[..., pa.Table], root: Path, tmp_path: Path
) -> None:
    """Picture, scores, parameters and provenance are those of the try that was accepted."""
    table = block(PROMPTS[0])
    (every,) = edit(table, NEVER, UP, tmp_path / "every")
    (first, second, _) = (each["psnr_db"] for each in every["tries"])
    between = (first + second) / 2
    side = {"at_least": between} if second > first else {"at_most": between}
    rules = Rules({"other": (Rule("psnr_db", RejectReason.NO_CHANGE, **side),)})
    (outcome,) = edit(table, rules)
    assert (outcome["outcome"], outcome["reason"]) == ("accepted", "")
    assert [each["reason"] for each in outcome["tries"]] == ["no_change", ""]
    assert outcome["psnr_db"] == second
    (row,) = metadata(root)
    used = NOTHING.applied_to(PARAMETERS)
    assert row["tries"] == 2
    assert parameters_of_columns(row, PARAMETERS) == used
    said = read_provenance((root / outcome["edited_file_name"]).read_bytes())
    assert said is not None
    assert said["parameters"] == used.to_dict()
    other = tmp_path / "asked-for"
    (directly,) = edit(block(PROMPTS[0], parameters=used), above(0.0), None, other)
    assert np.array_equal(
        pixels(root / outcome["edited_file_name"]), pixels(other / directly["edited_file_name"])
    )


def test_only_rejected_edits_are_tried_again(
    edit: Edit, block: Callable[..., pa.Table], root: Path, tmp_path: Path
) -> None:
    table = block(*PROMPTS, count=2)
    first = [o["psnr_db"] for o in edit(table, above(0.0), None, tmp_path / "first")]
    threshold = sorted(first)[1:3]
    outcomes = edit(table, above(sum(threshold) / 2))
    for outcome, value in zip(outcomes, first, strict=True):
        assert (outcome["tries"] is None) == (value >= sum(threshold) / 2)
    assert sum(outcome["tries"] is None for outcome in outcomes) == 2


def test_synthetic_sources_are_sampled_anew_and_stay_the_same(
    edit: Edit, root: Path, tmp_path: Path
) -> None:
    row = work_row(0, source_prompt="a photo of a dog", seed=11, targets=PROMPTS[:1])
    table = decode(work_table([row]), DecodeSettings())
    louder = RetryLadder({RejectReason.NO_CHANGE: (replace(NOTHING, guidance_scale=9.0),)})
    (outcome,) = edit(table, NEVER, louder)
    (once,) = edit(table, NEVER, None, tmp_path / "once")
    made_with = json.loads(outcome["tries"][1]["parameters"])
    assert made_with["guidance_scale"] == PARAMETERS.guidance_scale
    assert outcome["unet_rows"] == pytest.approx(2 * once["unet_rows"])


def test_the_summary_counts_them(edit: Edit, block: Callable[..., pa.Table]) -> None:
    outcomes = edit(block(*PROMPTS), NEVER)
    totals = RunTotals()
    totals.add(pa.Table.from_pylist(outcomes, schema=OUTCOME_SCHEMA))
    found = totals.retries
    assert (found.edits, found.attempts, found.accepted) == (2, 4, 0)
    assert found.unet_rows == pytest.approx(
        sum(each["unet_rows"] for outcome in outcomes for each in outcome["tries"][1:])
    )

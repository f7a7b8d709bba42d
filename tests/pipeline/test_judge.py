"""The judge in the editing actor: scores, verdicts, and where rejected pictures go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fpe_core import checkpoint_fingerprint, load_scorer, load_structure_model, score_edits
from fpe_core.acceptance import Rules
from pipeline.commit import REJECTED_FOLDER
from pipeline.decode import DecodeSettings, decode
from pipeline.edit_actor import EditActor, EditSettings
from pipeline.judge import Candidate, Judge, Judged, JudgeSettings
from pipeline.outcome import SCORE_COLUMNS
from pipeline.supervisor import Unwatched
from pipeline.write import MetadataLayout
from tests.pipeline.outcome_rows import key
from tests.pipeline.work_rows import work_row, work_table

PROMPTS = ("a red cat", "a blue dog")
TYPES = pa.schema([pa.field("edit_type", pa.string())])
CHEAP = ("psnr_db", "changed_share")
ALL_REJECTED = Rules.from_dict(
    {"colour": [{"score": "changed_share", "at_least": 2.0, "reason": "no_change"}]}
)

MakeActor = Callable[..., EditActor]
Rows = list[dict[str, Any]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def make_actor(tiny_checkpoint: Path, root: Path) -> MakeActor:
    def make(**judge: Any) -> EditActor:
        settings = {"clip": None, "structure": None, "scores": CHEAP, **judge}
        return EditActor(
            EditSettings(
                output=str(root),
                checkpoint=str(tiny_checkpoint),
                checkpoint_fingerprint=checkpoint_fingerprint(tiny_checkpoint),
                device="cpu",
                write_threads=2,
                layout=MetadataLayout(carried=TYPES, judged=True),
                judge=JudgeSettings(**settings),
            )
        )

    return make


@pytest.fixture
def block(
    picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]
) -> Callable[..., pa.Table]:
    """Decoded work rows with two edits each, and the manifest's column edit_type."""

    def make(*edit_types: str | None) -> pa.Table:
        rows = [
            work_row(n, image_bytes=png(picture(n)), source_prompt="a cat", targets=PROMPTS)
            for n in range(len(edit_types))
        ]
        table = decode(work_table(rows), DecodeSettings())
        carried = pa.table({"edit_type": list(edit_types)}, schema=TYPES)
        return table.append_column("carried", carried.to_struct_array())

    return make


def metadata(root: Path) -> Rows:
    return [
        row
        for file in root.glob("part-*/metadata.parquet")
        for row in pq.read_table(file).to_pylist()
    ]


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png") if path.parent.name != "source")


def test_scores_are_those_of_the_written_pictures_in_ledger_and_metadata(
    make_actor: MakeActor, block: Callable[..., pa.Table], root: Path
) -> None:
    defaults = {"clip": "builtin:still-life", "structure": "builtin:still-life", "scores": None}
    outcomes = make_actor(**defaults)(block("colour")).to_pylist()
    rows = metadata(root)
    with Image.open(root / outcomes[0]["source_file_name"]) as opened:
        source = opened.convert("RGB")
    for outcome, row in zip(outcomes, rows, strict=True):
        with Image.open(root / outcome["edited_file_name"]) as opened:
            edited = opened.convert("RGB")
        (expected,) = score_edits(
            [source],
            [edited],
            ["a cat"],
            [outcome["target_prompt"]],
            clip=load_scorer(device="cpu"),
            structure=load_structure_model(device="cpu"),
        )
        for name, value in asdict(expected).items():
            assert outcome[name] == (None if value is None else pytest.approx(value, abs=1e-4))
            assert row[name] == outcome[name]
        assert outcome["text_score"] is not None
        assert outcome["lpips"] is None, "no weights were given"
        assert (outcome["edit_type"], row["edit_type"]) == ("colour", "colour")


def test_rejected_edits_are_kept_apart_with_their_reason(
    make_actor: MakeActor, block: Callable[..., pa.Table], root: Path
) -> None:
    outcomes = make_actor(rules=ALL_REJECTED)(block("colour", "style")).to_pylist()
    assert [o["outcome"] for o in outcomes] == ["rejected", "rejected", "accepted", "accepted"]
    assert [o["reason"] for o in outcomes] == ["no_change", "no_change", "", ""]
    assert "changed_share" in outcomes[0]["message"]
    assert "is below 2" in outcomes[0]["message"]
    assert {row["edit_id"] for row in metadata(root)} == {o["edit_id"].hex() for o in outcomes[2:]}
    for outcome in outcomes:
        assert (root / outcome["edited_file_name"]).is_file()
        assert (root / outcome["source_file_name"]).is_file()
        is_apart = outcome["edited_file_name"].startswith(f"{REJECTED_FOLDER}/part-")
        assert is_apart == (outcome["outcome"] == "rejected")
        assert outcome["changed_share"] is not None


def test_rejected_edits_are_dropped_where_nobody_wants_them(
    make_actor: MakeActor, block: Callable[..., pa.Table], root: Path
) -> None:
    outcomes = make_actor(rules=ALL_REJECTED, keep_rejected=False)(block("colour")).to_pylist()
    assert [o["outcome"] for o in outcomes] == ["rejected", "rejected"]
    assert [o["edited_file_name"] for o in outcomes] == ["", ""]
    assert outcomes[0]["psnr_db"] is not None
    assert pictures(root) == []


@pytest.mark.parametrize(
    ("of_the_job", "of_the_row", "expected"),
    [(None, "colour", "colour"), (None, None, ""), ("style", "colour", "style")],
)
def test_the_type_of_an_edit_is_the_jobs_or_the_rows(
    make_actor: MakeActor,
    block: Callable[..., pa.Table],
    of_the_job: str | None,
    of_the_row: str | None,
    expected: str,
) -> None:
    outcomes = make_actor(edit_type=of_the_job)(block(of_the_row))
    assert set(outcomes["edit_type"].to_pylist()) == {expected}


def test_only_chosen_scores_are_computed(
    make_actor: MakeActor, block: Callable[..., pa.Table]
) -> None:
    (first, _) = make_actor()(block("colour")).to_pylist()
    assert {name for name in SCORE_COLUMNS if first[name] is not None} == set(CHEAP)


def test_the_station_says_what_it_cost(
    make_actor: MakeActor, block: Callable[..., pa.Table]
) -> None:
    actor = make_actor()
    edited = actor.edit(actor.prepare(block("colour", "style")), Unwatched())
    assert edited.figures["judge"]["rows"] == 4
    again = actor.edit(actor.prepare(block("colour", "style")), Unwatched())
    assert "judge" not in again.figures, "the part was there already: nothing was judged"


def test_an_edit_that_cannot_be_judged_is_not_accepted_and_costs_no_other() -> None:
    judge = Judge(JudgeSettings(clip=None, structure=None, scores=("ssim",)), torch.device("cpu"))
    good, small = Image.new("RGB", (32, 32)), Image.new("RGB", (8, 8))
    first, second = judge.judge(
        [Candidate(key(1), "", small, small), Candidate(key(2), "", good, good)]
    )
    assert isinstance(first, Exception), "SSIM needs 11 px"
    assert isinstance(second, Judged)
    assert second.scores.ssim == pytest.approx(1.0)
    assert second.verdict.is_accepted

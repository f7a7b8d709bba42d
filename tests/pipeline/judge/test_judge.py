"""The judge in the editing actor: scores, verdicts, and the files of rejected edits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fpe_core.device
from fpe_core import (
    CheckpointError,
    checkpoint_fingerprint,
    load_scorer,
    load_structure_model,
    score_edits,
)
from fpe_core.judging.rules import Rules
from fpe_core.scores.files import SCORER_DIR, scorer_bytes
from pipeline.edit.actor import EditActor
from pipeline.edit.settings import EditSettings
from pipeline.judge.judge import Candidate, Judge, Judged, JudgeSettings
from pipeline.judge.models import choose_judge_device, fingerprints
from pipeline.ledger.outcome import SCORE_COLUMNS, FailureCode
from pipeline.ledger.parts import REJECTED_FOLDER
from pipeline.read.decode import DecodeSettings, decode
from pipeline.supervision.supervisor import Unwatched
from pipeline.write.metadata import MetadataLayout
from tests.builders.outcome_rows import key
from tests.builders.work_rows import work_row, work_table
from tests.fpe_core.scores.test_lpips import random_classifier

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


def test_the_stage_says_what_it_cost(make_actor: MakeActor, block: Callable[..., pa.Table]) -> None:
    actor = make_actor()
    edited = actor.edit(actor.prepare(block("colour", "style")), Unwatched())
    assert edited.figures["judge"]["rows"] == 4
    again = actor.edit(actor.prepare(block("colour", "style")), Unwatched())
    assert "judge" not in again.figures, "the part was there already: nothing was judged"


def test_an_edit_that_cannot_be_judged_has_failed_and_says_so(
    make_actor: MakeActor, block: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise ValueError("no such kernel")

    monkeypatch.setattr(fpe_core, "score_edits", broken)
    outcomes = make_actor()(block("colour")).to_pylist()
    assert [o["outcome"] for o in outcomes] == ["failed", "failed"]
    assert {o["reason"] for o in outcomes} == {FailureCode.JUDGE_FAILED}
    assert {o["message"] for o in outcomes} == {"the judge raised ValueError: no such kernel"}


# --- its models -----------------------------------------------------------------------------------


def test_other_files_than_where_the_job_was_planned_are_refused(tmp_path: Path) -> None:
    """A copy elsewhere is the same model; one byte of its preprocessing makes it another."""
    planned = fingerprints(JudgeSettings())
    copied = tmp_path / "scorer"
    shutil.copytree(SCORER_DIR, copied)
    (copied / "README.md").write_text("what is no part of the model does not count")
    settings = JudgeSettings(clip=str(copied), fingerprints=planned)
    assert set(planned) == {"clip", "structure"}
    Judge(settings, torch.device("cpu"))
    file = copied / "preprocessor_config.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(CheckpointError, match=r"judge\.clip: .* is another model here .* planned"):
        Judge(settings, torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"judge\.clip: no scorer at /nowhere"):
        fingerprints(JudgeSettings(clip="/nowhere"))


def test_weights_of_lpips_are_a_model_like_the_others(tmp_path: Path) -> None:
    file = tmp_path / "vgg16.safetensors"
    save_file(random_classifier("vgg"), file)
    settings = JudgeSettings(clip=None, structure=None, lpips=str(file), lpips_net="vgg")
    planned = fingerprints(settings)
    assert set(planned) == {"lpips"}
    judge = Judge(replace(settings, fingerprints=planned), torch.device("cpu"))
    assert judge.models.lpips is not None
    assert judge.models.lpips.net == "vgg"
    with pytest.raises(CheckpointError, match="does not hold the classifier of net='alex'"):
        Judge(replace(settings, lpips_net="alex"), torch.device("cpu"))


def test_revisions_of_the_job_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(hub_id: str, *, revision: str | None, **_options: object) -> str:
        asked.append((hub_id, revision))
        return str(SCORER_DIR)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    settings = JudgeSettings(
        clip="someone/clip",
        clip_revision="v1",
        structure="someone/dino",
        structure_revision="v2",
    )
    Judge(settings, torch.device("cpu"))
    assert set(asked) == {("someone/clip", "v1"), ("someone/dino", "v2")}


def test_auto_is_where_the_checkpoint_is_if_there_is_room() -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert choose_judge_device(gpu, weights_bytes=1e9, free_bytes=4e9) == gpu
    assert choose_judge_device(gpu, weights_bytes=1e9, free_bytes=3.9e9) == cpu


def test_a_crowded_gpu_leaves_the_judge_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the built-in models take some 14 MB, so that 56 MB are just enough."""
    needed = 2 * scorer_bytes(SCORER_DIR)
    monkeypatch.setattr(fpe_core.device, "free_memory_bytes", lambda *_: 3.95 * needed)
    crowded = Judge(JudgeSettings(), torch.device("cuda", 0), memory_share=0.5)
    assert crowded.models.device == torch.device("cpu")
    assert crowded.models.clip is not None
    assert crowded.models.clip.device == torch.device("cpu")


def test_the_device_of_the_job_is_taken_as_it_is() -> None:
    judge = Judge(JudgeSettings(device="cpu"), torch.device("cuda", 0))
    assert judge.models.device == torch.device("cpu")
    assert Judge(JudgeSettings(), torch.device("cpu")).models.device == torch.device("cpu")


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

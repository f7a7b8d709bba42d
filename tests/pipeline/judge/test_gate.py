"""The reconstruction gate: which sources it measures and rejects, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fpe_core import checkpoint_fingerprint
from fpe_core.judging.reconstruction import ReconstructionLimits
from pipeline.edit.actor import EditActor
from pipeline.edit.settings import EditSettings
from pipeline.job.ending import FailuresSection
from pipeline.job.job import Job
from pipeline.judge.judge import JudgeSettings
from pipeline.ledger.ledger import Ledger
from pipeline.read.decode import DecodeSettings, decode
from pipeline.run.stats import RunTotals
from pipeline.storage.folder import Folder
from pipeline.verify.recompute import recompute_sample
from pipeline.verify.verify import verify_run
from pipeline.write.metadata import MetadataLayout
from tests.builders.finished_run import make_edits
from tests.builders.work_rows import PARAMETERS, work_row, work_table

SOURCES, TARGETS = 3, ("a red cat", "a blue dog")
INVERTING = PARAMETERS.steps
SHARED = 1  # the first step's unconditional row, of all edits of a source
EDITING = PARAMETERS.replaced_steps + SHARED + len(TARGETS) * (2 * PARAMETERS.steps - 1)
CHEAP: dict[str, Any] = {"clip": None, "structure": None, "scores": ("psnr_db",)}

Outcomes = list[dict[str, Any]]
Edit = Callable[..., Outcomes]


@pytest.fixture
def rows(
    picture: Callable[..., Image.Image], png: Callable[[Image.Image], bytes]
) -> list[dict[str, Any]]:
    return [work_row(n, image_bytes=png(picture(n)), targets=TARGETS) for n in range(SOURCES)]


@pytest.fixture
def edit(tiny_checkpoint: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> Edit:
    """edit(folder, limits, work rows): the outcomes, below tmp_path / folder."""

    def run(
        folder: str,
        limits: ReconstructionLimits,
        work: list[dict[str, Any]] | None = None,
        **judge: Any,
    ) -> Outcomes:
        settings = EditSettings(
            output=str(tmp_path / folder),
            checkpoint=str(tiny_checkpoint),
            checkpoint_fingerprint=checkpoint_fingerprint(tiny_checkpoint),
            device="cpu",
            write_threads=2,
            layout=MetadataLayout(judged=True, gated=limits.is_on),
            judge=JudgeSettings(**{**CHEAP, **judge}, reconstruction=limits),
        )
        block = decode(work_table(work or rows), DecodeSettings())
        return EditActor(settings)(block).to_pylist()

    return run


def rows_spent(outcomes: Outcomes) -> float:
    return sum(outcome["unet_rows"] for outcome in outcomes)


def between_the_worst_two(outcomes: Outcomes) -> float:
    worst, second = sorted({outcome["autoencoder_psnr_db"] for outcome in outcomes})[:2]
    return float(worst + second) / 2


def test_a_limit_that_all_pass_measures_and_costs_no_row(edit: Edit, tmp_path: Path) -> None:
    off = edit("off", ReconstructionLimits())
    low = edit("low", ReconstructionLimits(0.0))
    assert {o["outcome"] for o in (*off, *low)} == {"accepted"}
    assert rows_spent(off) == pytest.approx(SOURCES * (INVERTING + EDITING))
    assert rows_spent(low) == pytest.approx(rows_spent(off))
    assert {o["autoencoder_psnr_db"] for o in off} == {None}
    assert len({o["autoencoder_psnr_db"] for o in low}) == SOURCES
    (file,) = (tmp_path / "low").glob("part-*/metadata.parquet")
    for row, outcome in zip(pq.read_table(file).to_pylist(), low, strict=True):
        assert row["autoencoder_psnr_db"] == outcome["autoencoder_psnr_db"]
        assert row["autoencoder_psnr_db"] > 0
    pictures = [sorted((tmp_path / folder).glob("part-*/edited/*")) for folder in ("off", "low")]
    assert [a.read_bytes() for a in pictures[0]] == [b.read_bytes() for b in pictures[1]]


def test_edits_of_a_source_below_the_limit_are_rejected_before_they_cost_their_rows(
    edit: Edit, tmp_path: Path
) -> None:
    limit = between_the_worst_two(edit("all", ReconstructionLimits(0.0)))
    outcomes = edit("gated", ReconstructionLimits(limit))
    rejected = [o for o in outcomes if o["outcome"] == "rejected"]
    assert {o["outcome"] for o in outcomes} == {"accepted", "rejected"}
    assert len(rejected) == len(TARGETS)
    assert len({o["source_id"] for o in rejected}) == 1
    for outcome in rejected:
        figure = outcome["autoencoder_psnr_db"]
        assert outcome["reason"] == "source_not_reconstructed"
        assert f"autoencoder {figure:.1f} dB, less than {limit:g}" in outcome["message"]
        assert figure < limit
        assert outcome["edited_file_name"] == ""
        assert outcome["source_file_name"].startswith(f"{outcome['part']}/source/")
        assert outcome["psnr_db"] is None, "there is no edit to score"
        assert (tmp_path / "gated" / outcome["source_file_name"]).is_file()
    (file,) = (tmp_path / "gated").glob("rejected/part-*/metadata.parquet")
    table = pq.read_table(file)
    assert table["reject_reason"].to_pylist() == ["source_not_reconstructed"] * len(TARGETS)
    assert table["edited_file_name"].null_count == len(TARGETS)
    assert rows_spent(rejected) == 0, "the gate comes before the inversion"
    assert rows_spent(outcomes) == pytest.approx((SOURCES - 1) * (INVERTING + EDITING))


def test_where_rejected_edits_are_dropped_their_source_is_too(edit: Edit, tmp_path: Path) -> None:
    outcomes = edit("dropped", ReconstructionLimits(1000.0), keep_rejected=False)
    assert {o["reason"] for o in outcomes} == {"source_not_reconstructed"}
    assert {o["source_file_name"] for o in outcomes} == {""}
    assert not (tmp_path / "dropped").exists()


def test_synthetic_sources_pass(edit: Edit) -> None:
    synthetic = [work_row(0, source_prompt="a cat", seed=1, targets=TARGETS)]
    outcomes = edit("synthetic", ReconstructionLimits(1000.0), synthetic)
    assert {o["outcome"] for o in outcomes} == {"accepted"}
    assert {o["autoencoder_psnr_db"] for o in outcomes} == {None}
    sampled = 2 * PARAMETERS.steps
    assert rows_spent(outcomes) == pytest.approx(sampled + SHARED + (sampled - 1) * len(TARGETS))


def test_a_run_with_gated_sources_is_verified_counted_and_made_again(
    edit: Edit,
    tiny_checkpoint: Path,
    tmp_path: Path,
    picture: Callable[..., Image.Image],
) -> None:
    for number in range(SOURCES):
        picture(number).save(tmp_path / f"{number}.png")
    images = [f"{number}.png" for number in range(SOURCES)]
    table = pa.table({"image": images, "target_prompt": [list(TARGETS)] * SOURCES})
    pq.write_table(table, tmp_path / "manifest.parquet")
    measured = edit("measured", ReconstructionLimits(0.0))
    limit = between_the_worst_two(measured)
    judge = {"clip": None, "structure": None, "scores": ["psnr_db"]}
    job = Job.model_validate(
        {
            "manifest": str(tmp_path / "manifest.parquet"),
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
            "judge": {**judge, "reconstruction": {"autoencoder_psnr_db_at_least": limit}},
        }
    )
    assert job.judge is not None
    limits = job.judge.reconstruction.to_limits()
    make_edits(job, SOURCES, JudgeSettings(**CHEAP, reconstruction=limits))

    found = verify_run(job)
    assert found.ok, found.problems
    assert (found.planned, found.accepted, found.rejected) == (6, 4, 2)
    ledger = Ledger.open(Folder.open(job.output))
    assert ledger.counts().rejected_by_reason == {"source_not_reconstructed": len(TARGETS)}
    totals = RunTotals()
    for outcomes in ledger.outcomes():
        totals.add(outcomes)
    totals.check(FailuresSection(max_in_a_row=1, max_share=0.0, min_sources_for_share=1))
    assert totals.rejections == {"source_not_reconstructed": len(TARGETS)}
    again = recompute_sample(job, 6, device="cpu")
    assert again.ok
    assert again.compared == 4, "what was never made is no edit to make again"

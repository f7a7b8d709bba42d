"""`editor: none`: all stages run without the model, and no output can be taken for an edit."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from jobs.terminal.tables import plan_table
from pipeline.edit.actor import EditActor
from pipeline.edit.no_editor import NOT_EDITED
from pipeline.edit.settings import EditSettings
from pipeline.errors import JobError
from pipeline.job.editor import NO_EDITOR
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import Outcome
from pipeline.plan.embedded_images import embedded_of, read_run, runs_of
from pipeline.plan.plan import make_plan
from pipeline.plan.resolved_job import resolve_job
from pipeline.plan.work_list import cut_work
from pipeline.read.decode import decode
from pipeline.run.dataset_card import CARD_FILE
from pipeline.run.driver import run_job
from pipeline.run.worker_settings import decode_settings
from pipeline.storage.folder import Folder
from pipeline.verify.recompute import recompute_sample
from pipeline.verify.verify import verify_run
from pipeline.write.metadata import PARAMETER_COLUMNS
from pipeline.write.provenance import read_provenance

SIZE_PX = 32
EDITS = ("a red cup", "a blue cup")


class Silent:
    """A progress sink that says nothing."""

    def start(self, total: int, done: int) -> None:
        pass

    def advance(self, outcomes_table: pa.Table) -> None:
        pass

    def finish(self) -> None:
        pass


@pytest.fixture
def manifest(tmp_path: Path, picture: Callable[..., Image.Image]) -> str:
    """Three pictures, one of which is not there, and two edits of each."""
    for number in range(2):
        picture(number, 40, 30).save(tmp_path / f"{number}.png")
    images = ["0.png", "1.png", "gone.png"]
    pq.write_table(
        pa.table({"image": images, "target_prompt": [list(EDITS)] * 3}), tmp_path / "m.parquet"
    )
    return str(tmp_path / "m.parquet")


@pytest.fixture
def make_job(tmp_path: Path, manifest: str) -> Callable[..., Job]:
    def make(output: str = "run", **keys: Any) -> Job:
        values: dict[str, Any] = {
            "manifest": manifest,
            "output": str(tmp_path / output),
            "editor": NO_EDITOR,
            "edit": {"size_px": SIZE_PX},
        }
        return Job.model_validate(values | keys)

    return make


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_makes_copies_that_claim_nothing(make_job: Callable[..., Job]) -> None:
    job = make_job()
    summary = run_job(job, progress=Silent())
    assert (summary.accepted, summary.failed, summary.unet_rows) == (4, 2, 0.0)
    folder = Path(job.output)
    files = [*folder.glob("part-*/metadata.parquet")]
    rows = [(file.parent, row) for file in files for row in pq.read_table(file).to_pylist()]
    assert [row["editor"] for _, row in rows] == [NOT_EDITED] * 4
    assert not {*PARAMETER_COLUMNS, "checkpoint", "checkpoint_fingerprint"} & set(rows[0][1])
    for part, row in rows:
        edited, source = part / row["edited_file_name"], part / row["source_file_name"]
        assert pixels(edited) == pixels(source)
        assert read_provenance(edited.read_bytes()) == {}
    ledger = pa.concat_tables(Ledger(Folder.open(job.output)).outcomes())
    messages = ledger.filter(pc.equal(ledger["outcome"], Outcome.ACCEPTED))["message"]
    assert set(messages.to_pylist()) == {NOT_EDITED}
    card = (folder / CARD_FILE).read_text()
    assert "not edited" in card
    assert "Free-Prompt-Editing" not in card
    assert "- synthetic" not in card  # as a tag
    assert verify_run(job).ok
    assert run_job(job, progress=Silent()).edits_made == 0
    with pytest.raises(JobError, match="the job makes no edits"):
        recompute_sample(job, 1)


def test_ids_are_not_those_of_edits(make_job: Callable[..., Job]) -> None:
    """Also where a job names the same parameters."""
    copies = resolve_job(make_job())
    edits = resolve_job(make_job(editor="fpe", edit=copies.job.edit.model_dump()))
    same = resolve_job(make_job(editor="fpe")).job.with_parameters(copies.parameters)
    assert not set(copies.edit_ids()) & {*edits.edit_ids(), *resolve_job(same).edit_ids()}
    assert copies.context.fingerprint == NO_EDITOR


def test_a_plan_says_it(make_job: Callable[..., Job]) -> None:
    plan = make_plan(make_job(), write=False)
    assert not plan.makes_edits
    assert plan.unet_rows == 0
    assert "makes no edits" in str(list(plan_table(plan, "run").columns[1].cells))


@pytest.mark.parametrize("section", ["judge", "annotations"])
def test_what_looks_at_edits_is_refused(make_job: Callable[..., Job], section: str) -> None:
    keys = {"judge": {}, "annotations": {"boxes": {"column": "box", "format": "xywh"}}}
    with pytest.raises(ValidationError, match=f"so {section} does not apply"):
        make_job(**{section: keys[section]})


def test_a_synthetic_source_fails_alone(tmp_path: Path, picture: Callable[..., Any]) -> None:
    """There is no picture before a model made it."""
    sink = io.BytesIO()
    picture(0).save(sink, "PNG")
    pq.write_table(
        pa.table(
            {
                "image": pa.array(
                    [{"bytes": sink.getvalue(), "path": "a.png"}, None],
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
                ),
                "source_prompt": ["a cup", "a cup"],
                "seed": [1, 2],
                "target_prompt": ["a red cup"] * 2,
            }
        ),
        tmp_path / "m.parquet",
    )
    job = Job.model_validate(
        {"manifest": str(tmp_path / "m.parquet"), "output": str(tmp_path / "o"), "editor": "none"}
    )
    plan = make_plan(job)
    folder = Folder.open(job.output)
    slices = cut_work(folder, plan.work_files, 100, 1000)
    work = pa.concat_tables(
        block
        for run in runs_of(slices, plan.embedded)
        for block in read_run(folder, run, embedded_of(run, plan.embedded))
    )
    actor = EditActor(
        EditSettings(
            job.output,
            checkpoint="none",
            checkpoint_fingerprint=plan.fingerprint,
            makes_edits=plan.makes_edits,
        )
    )
    outcomes = actor(decode(work, decode_settings(job))).to_pylist()
    assert [row["outcome"] for row in outcomes] == [Outcome.ACCEPTED, Outcome.FAILED]
    assert outcomes[1]["reason"] == "source_missing"

"""Jobs with gradients: pix2pix_zero planned as slow, by sentences; and made again after a kill."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.terminal.tables import plan_table
from pipeline.errors import ManifestError
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.plan.plan import make_plan
from pipeline.storage.folder import Folder
from tests.builders.finished_run import make_edits

MakeJob = Callable[..., Job]
ROOT = Path(__file__).parents[3]
SENTENCES = {
    "name": "pix2pix_zero",
    "source_sentences": ["a red cup", "the cup is red"],
    "target_sentences": ["a blue cup", "the cup is blue"],
}
KILLED = """
import os, signal, sys, torch
from pipeline.job.job import Job
from tests.builders.finished_run import make_edits

gradients, taken = torch.autograd.grad, iter(range(1000))

def grad(*args, **named):
    if next(taken) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return gradients(*args, **named)

torch.autograd.grad = grad
make_edits(Job.model_validate_json(sys.argv[1]), groups_per_block=1)
"""


def pictures(job: Job) -> dict[str, np.ndarray]:
    """Every edit of the run, by its file's name."""
    files = Path(job.output).glob("part-*/edited/*.png")
    return {f.name: np.asarray(Image.open(io.BytesIO(f.read_bytes()))) for f in files}


def test_a_job_with_sentences_is_planned_and_made(
    make_job: MakeJob, columns: dict[str, Any]
) -> None:
    """The direction is the same for all of its edits, whatever their target prompts; the plan says
    that it is slow."""
    job = make_job(columns, SENTENCES)
    plan = make_plan(job, write=False)
    assert plan.backward_passes == 4 * 2 * 4
    cells = [list(column.cells) for column in plan_table(plan, "run").columns]
    shown = dict(zip(map(str, cells[0]), map(str, cells[1]), strict=True))
    assert (shown["UNet rows to do"], shown["  slow: with a backward pass"]) == ("80", "32")
    make_edits(job, groups_per_block=2)
    counts = Ledger.open(Folder.open(job.output)).counts()
    assert (counts.accepted, counts.failed, counts.unet_rows) == (4, 0, plan.unet_rows)
    (file,) = Path(job.output).glob("part-*/metadata.parquet")
    rows = pq.read_table(file).to_pylist()
    by_source: dict[str, list[np.ndarray]] = {}
    for row in rows:
        own = json.loads(row["editor_parameters"])
        assert own["source_sentences"] == SENTENCES["source_sentences"]
        by_source.setdefault(row["source_id"], []).append(
            pictures(job)[Path(row["edited_file_name"]).name]
        )
    for one, other in by_source.values():
        assert np.abs(one.astype(int) - other).max() <= 1
    assert "slow" not in str(list(plan_table(make_plan(make_job(columns, "ddim")), "run").columns))


@pytest.mark.parametrize(
    ("editor", "inversion", "gradients"),
    [("pix2pix_zero", "direct", 6), ("fpe", "null_text", 45)],
    ids=["of four a source", "of forty at most"],
)
def test_a_run_that_is_killed_in_the_middle_of_gradients_goes_on_with_the_same_result(
    make_job: MakeJob,
    columns: dict[str, Any],
    tmp_path: Path,
    editor: str,
    inversion: str,
    gradients: int,
) -> None:
    """Killed within the second source, in an edit or in the optimisation of its inversion."""
    job = make_job(columns, editor, inversion=inversion)
    whole = job.model_copy(update={"output": str(tmp_path / "whole")})
    make_edits(whole, groups_per_block=1)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, job.model_dump_json(), str(gradients)],
        cwd=ROOT,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert Ledger.open(Folder.open(job.output)).counts().accepted == 2
    make_edits(job, groups_per_block=1)
    made, expected = pictures(job), pictures(whole)
    assert made.keys() == expected.keys()
    assert len(made) == 4
    assert all((made[name] == expected[name]).all() for name in made)


def test_what_a_row_must_have(make_job: MakeJob, columns: dict[str, Any]) -> None:
    job = make_job(columns | {"source_prompt": [None, "a red cup"]}, "pix2pix_zero")
    plan = make_plan(job, write=False)
    assert plan.edits_not_applicable == 2
    assert plan.first_not_applicable == "row 0: no source prompt"
    with pytest.raises(ManifestError) as raised:
        make_plan(make_job(columns | {"negative_prompt": ["ugly"] * 2}, "pix2pix_zero"))
    assert "negative_prompt must be empty" in str(raised.value)

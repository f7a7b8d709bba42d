"""Run folders with verdicts and scores as a judged job leaves them, without a model or Ray.

The plan, the ids, the ledger and the summaries are made by the pipeline itself; only the scores and
verdicts are chosen, by a function of the edit's number in the plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import yaml

from fpe_core.judging.rules import RejectReason
from fpe_core.scores.edit_scores import EditScores
from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.outcome import EditKey, EditOutcome, outcomes_table
from pipeline.ledger.parts import write_outcomes
from pipeline.plan.plan import make_plan
from pipeline.run.folder import CONFIG_FILE
from pipeline.run.stats import STATS_FILE, RunTotals, encode_stats
from pipeline.storage.folder import Folder
from pipeline.write.metadata import MetadataLayout
from pipeline.write.part import encode_metadata
from tests.builders.finished_run import FinishedRun, hashes_of
from tests.servers.stores import Store

RULES = {
    "colour": [
        {"score": "changed_share", "at_least": 0.02, "reason": "no_change"},
        {"score": "directional_similarity", "at_least": 0.5, "reason": "wrong_direction"},
    ]
}
PART = "part-a"

Judgement = Callable[[int, EditKey], EditOutcome]


def labelled_job(store: Store, checkpoint: str, *, name: str = "run", **values: Any) -> Job:
    """Three pictures in two colours each, judged as colour edits: six edits."""
    columns = {"image": ["a.png", "b.png", "c.png"], "shape": ["cat", "dog", "car"]}
    return Job.model_validate(
        {
            "manifest": store.put_table(f"{name}.parquet", columns),
            "output": store.url(name),
            "storage_options": store.storage_options,
            "model": {"checkpoint": checkpoint},
            "prompts": {
                "target": "a {colour} {shape}",
                "source": "a {shape}",
                "labels": {"colour": ["red", "blue"]},
            },
            "judge": {"edit_type": "colour", "rules": RULES},
            **values,
        }
    )


def accepted(number: int, key: EditKey, **scores: float) -> EditOutcome:
    name = f"{PART}/edited/{number}.png"
    return _typed(key).accepted(
        part=PART,
        edited_file_name=name,
        source_file_name=f"{PART}/source/{key.source_id.hex()}.png",
        unet_rows=10.0,
        seconds=0.5,
        scores=EditScores(**scores),
    )


def rejected(number: int, key: EditKey, reason: RejectReason, **scores: float) -> EditOutcome:
    return _typed(key).rejected(
        reason,
        f"{reason.value} it was",
        edited_file_name=f"rejected/{PART}/{number}.png",
        source_file_name=f"{PART}/source/{key.source_id.hex()}.png",
        unet_rows=10.0,
        seconds=0.5,
        scores=EditScores(**scores),
    )


def failed(key: EditKey, code: str = "source_missing", message: str = "not there") -> EditOutcome:
    return _typed(key).failed(code, message)


def _typed(key: EditKey) -> EditKey:
    return dataclasses.replace(key, edit_type="colour")


def write_run(job: Job, image: bytes, judgement: Judgement) -> list[EditOutcome]:
    """A run of which every edit has an outcome; the outcomes, in the order of the plan."""
    run = FinishedRun(job, image)
    ledger = Ledger.open(run.folder)
    plan = make_plan(job, ledger)
    outcomes = [judgement(number, key) for number, key in enumerate(run.keys())]
    for outcome in outcomes:
        for path in (outcome.edited_file_name, outcome.source_file_name):
            if path:
                run.folder.write_if_absent(path, image)
    table = outcomes_table(outcomes)
    write_metadata(run.folder, outcomes, plan.label_names)
    ledger.commit(table)
    totals = RunTotals()
    totals.add(table)
    totals.add_stages({"edit": {"rows": 6, "seconds": 3.0, "worker_seconds": 6.0}})
    stats = encode_stats(totals.summary(plan, job.output), ledger.counts(), pool=None, workers={})
    run.folder.replace(STATS_FILE, stats)
    run.folder.replace(CONFIG_FILE, yaml.safe_dump(job.model_dump(mode="json")).encode())
    return outcomes


def write_metadata(
    folder: Folder, outcomes: Sequence[EditOutcome], labels: Sequence[str]
) -> pa.Table:
    """The part's metadata, with a label's value as the second word of the prompt."""
    rows = [
        {
            "edited_file_name": outcome.edited_file_name.removeprefix(f"{PART}/"),
            "source_file_name": outcome.source_file_name.removeprefix(f"{PART}/"),
            "edit_id": outcome.edit_id.hex(),
            "group_id": outcome.key.group_id.hex(),
            "source_id": outcome.key.source_id.hex(),
            "id": "",
            "source_prompt": "a " + outcome.key.target_prompt.split()[-1],
            "target_prompt": outcome.key.target_prompt,
            **{name: outcome.key.target_prompt.split()[1] for name in labels},
        }
        for outcome in outcomes
        if outcome.outcome == "accepted"
    ]
    metadata = MetadataLayout(tuple(labels), judged=True).table(rows, None)
    table = outcomes_table(outcomes)
    record = write_outcomes(folder, PART, table, hashes_of(folder, table))
    data = encode_metadata(metadata, record)
    folder.write_if_absent(f"{PART}/metadata.parquet", data)
    return metadata

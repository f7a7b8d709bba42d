"""A run, seen from outside: a node's Prometheus endpoint, and the logs of its workers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from pipeline.job.job import Job
from pipeline.ledger.ledger import Ledger
from pipeline.run.driver import run_job
from pipeline.run.metrics import FAMILIES, RAY_PREFIX
from pipeline.run.stats import RunSummary
from pipeline.storage.folder import Folder
from tests.faults.nobody import Nobody
from tests.servers.prometheus import Samples, by_stage, scrape


def edits(samples: Samples) -> Counter[tuple[str, str]]:
    """Edits by outcome and reason."""
    return Counter(
        {
            (dict(labels)["outcome"], dict(labels).get("reason", "")): int(value)
            for (name, labels), value in samples.items()
            if name == f"{RAY_PREFIX}fpe_edits_total"
        }
    )


@dataclass(frozen=True)
class Ran:
    job: Job
    summary: RunSummary


@pytest.fixture(scope="module")
def ran(
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
    picture: Callable[..., Image.Image],
    tiny_checkpoint: Path,
) -> Ran:
    """Three pictures and one that is missing; two edits each, two sources in a block."""
    folder = tmp_path_factory.mktemp("observed")
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    table = pa.table(
        {
            "image": [*(f"{number}.png" for number in range(3)), "absent.png"],
            "target_prompt": [["a red cat", "a blue cat"]] * 4,
        }
    )
    pq.write_table(table, folder / "manifest.parquet")
    job = Job.model_validate(
        {
            "manifest": str(folder / "manifest.parquet"),
            "output": str(folder / "run"),
            "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
            "resources": {"groups_per_block": 2, "cpus_per_actor": 2},
            "logs": {"format": "json"},
        }
    )
    return Ran(job, run_job(job, progress=Nobody()))


def test_the_endpoint_counts_what_the_ledger_has(ran: Ran) -> None:
    job, summary = ran.job, ran.summary
    ledger = Ledger.open(Folder.open(job.output))
    entered = [row for table in ledger.outcomes() for row in table.to_pylist()]
    in_ledger = Counter((row["outcome"], row["reason"]) for row in entered)
    assert in_ledger == {("accepted", ""): 6, ("failed", "source_missing"): 2}

    rows = {name: figures["rows"] for name, figures in summary.stages.items()}
    made, rows_made = (f"{RAY_PREFIX}fpe_unet_rows_made_total", ()), summary.unet_rows
    left = (f"{RAY_PREFIX}fpe_edits_left", ())

    def is_complete(samples: Samples) -> bool:
        counts = (edits(samples), by_stage(samples, "fpe_stage_rows_total"))
        is_over = samples.get(left) == 0  # every metric is told when its turn comes
        return is_over and counts == (in_ledger, rows) and samples.get(made, 0.0) >= rows_made

    samples = scrape(summary.run, is_complete)
    by_name = {name.removeprefix(RAY_PREFIX) for name, _ in samples}
    assert by_name <= {family.name for family in FAMILIES}

    def value(name: str, **labels: str) -> float:
        return samples[f"{RAY_PREFIX}{name}", tuple(sorted(labels.items()))]

    assert value("fpe_unet_rows_total") == pytest.approx(ledger.counts().unet_rows)
    assert value("fpe_unet_rows_made_total") == pytest.approx(ledger.counts().unet_rows)
    assert (value("fpe_edits_planned"), value("fpe_edits_left")) == (8, 0)
    assert value("fpe_blocks_total", stage="edit") == 2
    for stage in ("decode", "edit"):
        assert value("fpe_queue_blocks", stage=stage) == 0
        assert value("fpe_blocks_in_hand", stage=stage) == 0
    as_summed_up(samples, summary)
    stats = json.loads(Path(job.output, "stats.json").read_bytes())
    assert stats["last_run"]["run"] == summary.run


def as_summed_up(samples: Samples, summary: RunSummary) -> None:
    """Seconds are those of stats.json, and every phase of a run without a judge has some."""
    seconds = {
        dict(labels)["phase"]: value
        for (name, labels), value in samples.items()
        if name == f"{RAY_PREFIX}fpe_phase_seconds_total"
    }
    phases = {"load", "read", "encode", "invert", "sample", "decode", "write", "commit"}
    assert seconds.keys() == phases
    of_model = sum(seconds[phase] for phase in ("encode", "invert", "sample", "decode"))
    assert of_model <= summary.stages["edit"]["seconds"]
    assert all(value > 0 for value in seconds.values())


def test_workers_log_one_object_a_line_in_rays_folder(ran: Ran) -> None:
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    lines = [
        json.loads(line)
        for file in logs.glob("worker-*.err")
        for line in file.read_text().splitlines()
        if ran.summary.run in line
    ]
    said = Counter((line["stage"], line["message"]) for line in lines)
    assert said == {
        ("load", "began a block of 1"): 1,
        ("load", "ended a block of 1"): 1,
        ("decode", "began a block of 2"): 2,
        ("decode", "ended a block of 2"): 2,
        ("edit", "began a block of 2"): 2,
        ("edit", "ended a block of 2"): 2,
    }
    of_edit = [line for line in lines if line["stage"] == "edit" and "figures" in line]
    assert sum(line["figures"]["edit"]["rows"] for line in of_edit) == 8
    assert {line["worker"] for line in of_edit} <= {line["worker"] for line in lines}
    assert all(line["level"] == "info" and line["time"].endswith("Z") for line in lines)

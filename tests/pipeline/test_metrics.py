"""What a node's Prometheus endpoint says of a run is what the ledger says."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from pipeline.job import Job
from pipeline.ledger import Ledger
from pipeline.metrics import FAMILIES, RAY_PREFIX, Looks, RunMetrics
from pipeline.outcome import outcomes_table
from pipeline.run import run_job
from pipeline.stats import RunSummary
from pipeline.storage import Folder
from pipeline.supervisor import StationFigures
from tests.faults.nobody import Nobody
from tests.pipeline.outcome_rows import accepted, failed, rejected

_LOOKS = 600

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def exported(run: str) -> Samples:
    """What the endpoints of all nodes have of a run: by name and our labels but `run`."""
    samples: Samples = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            with urllib.request.urlopen(url) as answer:
                text = answer.read().decode()
        except urllib.error.URLError:  # the agent is not up yet
            continue
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("run") == run:
                    ours = {k: v for k, v in sample.labels.items() if k in LABELS}
                    samples[sample.name, tuple(sorted(ours.items()))] = sample.value
    return samples


LABELS = {label for family in FAMILIES for label in family.labels}


def scrape(run: str, until: Callable[[Samples], bool]) -> Samples:
    """`exported` as soon as it is complete: Ray hands figures to the endpoint every so often."""
    pause = threading.Event()
    samples: Samples = {}
    for _ in range(_LOOKS):
        samples = exported(run)
        if until(samples):
            return samples
        pause.wait(0.1)
    raise AssertionError(f"never came: {samples}")


def edits(samples: Samples) -> Counter[tuple[str, str]]:
    """Edits by outcome and reason."""
    return Counter(
        {
            (dict(labels)["outcome"], dict(labels)["reason"]): int(value)
            for (name, labels), value in samples.items()
            if name == f"{RAY_PREFIX}fpe_edits_total"
        }
    )


@pytest.fixture
def job(
    ray_cluster: None, tmp_path: Path, picture: Callable[..., Image.Image], tiny_checkpoint: Path
) -> Job:
    """Three pictures and one that is missing; two edits each, two sources in a block."""
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    table = pa.table(
        {
            "image": [*(f"{number}.png" for number in range(3)), "absent.png"],
            "target_prompt": [["a red cat", "a blue cat"]] * 4,
        }
    )
    pq.write_table(table, tmp_path / "manifest.parquet")
    return Job.model_validate(
        {
            "manifest": str(tmp_path / "manifest.parquet"),
            "output": str(tmp_path / "run"),
            "model": {"checkpoint": str(tiny_checkpoint), "device": "cpu"},
            "resources": {"groups_per_block": 2, "cpus_per_actor": 2},
        }
    )


def test_the_endpoint_counts_what_the_ledger_has(job: Job) -> None:
    summary = run_job(job, progress=Nobody())
    ledger = Ledger.open(Folder.open(job.output))
    rows = [row for table in ledger.outcomes() for row in table.to_pylist()]
    in_ledger = Counter((row["outcome"], row["reason"]) for row in rows)
    assert in_ledger == {("accepted", ""): 6, ("failed", "source_missing"): 2}

    samples = scrape(summary.run, until=lambda s: edits(s) == in_ledger and len(s) > 30)
    by_name = {name.removeprefix(RAY_PREFIX) for name, _ in samples}
    assert by_name <= {family.name for family in FAMILIES}

    def value(name: str, **labels: str) -> float:
        return samples[f"{RAY_PREFIX}{name}", tuple(sorted(labels.items()))]

    assert value("fpe_unet_rows_total") == pytest.approx(ledger.counts().unet_rows)
    assert value("fpe_unet_rows_made_total") == pytest.approx(ledger.counts().unet_rows)
    assert (value("fpe_edits_planned"), value("fpe_edits_left")) == (8, 0)
    assert value("fpe_blocks_total", station="edit") == 2
    for station in ("decode", "edit"):
        assert value("fpe_queue_blocks", station=station) == 0
        assert value("fpe_blocks_in_hand", station=station) == 0
    as_summed_up(samples, summary)
    stats = json.loads(Path(job.output, "stats.json").read_bytes())
    assert stats["last_run"]["run"] == summary.run


def as_summed_up(samples: Samples, summary: RunSummary) -> None:
    """Rows and seconds are those of stats.json."""
    for station, figures in summary.stations.items():
        labels = (("station", station),)
        rows = samples[f"{RAY_PREFIX}fpe_station_rows_total", labels]
        assert rows == pytest.approx(figures["rows"]), station
    seconds = {
        dict(labels)["phase"]: value
        for (name, labels), value in samples.items()
        if name == f"{RAY_PREFIX}fpe_phase_seconds_total"
    }
    phases = {"load", "read", "encode", "invert", "sample", "decode", "write", "commit"}
    assert seconds.keys() == phases
    of_model = sum(seconds[phase] for phase in ("encode", "invert", "sample", "decode"))
    assert of_model <= summary.stations["edit"]["seconds"]
    assert all(value > 0 for value in seconds.values())


def test_labels_are_closed_and_no_edit_has_a_series_of_its_own() -> None:
    metrics = RunMetrics("run-1")
    many = [o for n in range(50) for o in (accepted(3 * n), failed(3 * n + 1), rejected(3 * n + 2))]
    metrics.committed(outcomes_table(many))
    few = RunMetrics("run-1")
    few.committed(outcomes_table(many[:3]))
    assert metrics.values().keys() == few.values().keys()
    assert sum(v for (name, _), v in metrics.values().items() if name == "fpe_edits_total") == 150


class Books:
    """A supervisor's books that are what they are set to."""

    def __init__(self) -> None:
        self.answer: tuple[StationFigures, StationFigures] | None = None

    def peek(self) -> tuple[StationFigures, StationFigures] | None:
        return self.answer


def test_figures_are_counted_once_however_often_they_are_looked_at() -> None:
    books, metrics = Books(), RunMetrics("run-1")
    for _ in range(2):  # two rounds, with a supervisor each
        books.answer = None
        with metrics.watching(books):
            edit = {"rows": 4.0, "blocks": 2.0, "unet_rows": 50.0, "lost_unet_rows": 10.0}
            books.answer = ({"edit": edit}, {"edit": {"in_hand": 1.0, "waiting": 3.0}})
    values = metrics.values()
    of_edit = (("station", "edit"),)
    assert values["fpe_station_rows_total", of_edit] == 8
    assert values["fpe_unet_rows_made_total", ()] == 100
    assert values["fpe_unet_rows_lost_total", ()] == 20
    assert values["fpe_queue_blocks", of_edit] == 3


def test_a_supervisor_that_forgot_takes_nothing_back() -> None:
    """Ray may have started it anew."""
    books, metrics = Books(), RunMetrics("run-1")
    looks = Looks(metrics, books)
    for rows in (4.0, 1.0, 3.0):
        books.answer = ({"edit": {"rows": rows}}, {})
        looks.look()
    books.answer = None
    looks.look()
    assert metrics.values()["fpe_station_rows_total", (("station", "edit"),)] == 6

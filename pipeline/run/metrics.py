"""The Prometheus metrics of a run, exported through Ray, whose agent on every node serves them.

Ray puts `ray_` before each name and adds labels of its own. The driver exports everything: what it
commits, and every few seconds what the supervisor has summed up. So no figure is lost with a
worker, and at the end of a run the metrics agree with the ledger and stats.json. A run that finds
nothing to do starts no Ray and exports nothing.

The values of labels are closed sets, except for `run`, which has one value per run; edits have no
series of their own. docs/observability.md explains how to scrape the metrics,
jobs/cluster/grafana-dashboard.json displays them.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.supervision.supervisor import StageFigures

RAY_PREFIX = "ray_"
POLL_INTERVAL_S = 5.0
"""Time between two polls of the supervisor; Ray exports every 10 s."""


@dataclass(frozen=True)
class Family:
    """One metric, with the label `run` and `labels`. A counter if the name ends with _total."""

    name: str
    labels: tuple[str, ...]
    description: str

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")


FAMILIES = (
    Family(
        "fpe_edits_total",
        ("outcome", "reason"),
        "Edits that entered the ledger: accepted, rejected or failed, and why.",
    ),
    Family("fpe_edits_planned", (), "Edits of the job, including those of earlier runs."),
    Family("fpe_edits_left", (), "Edits of the plan without an outcome."),
    Family("fpe_actors", (), "Editing workers that the run may have; each has a model."),
    Family("fpe_actors_there", (), "Editing workers that exist now."),
    Family("fpe_unet_rows_total", (), "UNet rows of the edits that entered the ledger."),
    Family(
        "fpe_unet_rows_made_total",
        (),
        "UNet rows that models evaluated, including those that were lost.",
    ),
    Family(
        "fpe_unet_rows_lost_total",
        (),
        "UNet rows of blocks whose worker died or went away with its machine.",
    ),
    Family(
        "fpe_edit_retries_total",
        (),
        "Attempts of edits beyond the first, after a rejection by the judge.",
    ),
    Family(
        "fpe_stage_rows_total",
        ("stage",),
        "Models loaded, sources decoded, edits attempted and judged, images written, outcomes "
        "committed.",
    ),
    Family(
        "fpe_phase_seconds_total",
        ("phase",),
        "Seconds of all workers added up, by phase: load, read, encode, invert, ...",
    ),
    Family("fpe_blocks_total", ("stage",), "Blocks of sources that a stage has finished."),
    Family(
        "fpe_block_seconds_total",
        ("stage",),
        "Seconds for which blocks were being processed, added up over all blocks.",
    ),
    Family(
        "fpe_blocks_lost_total",
        ("stage",),
        "Blocks whose worker died or went away with its machine; they are processed again.",
    ),
    Family("fpe_blocks_in_hand", ("stage",), "Blocks that a stage is working on."),
    Family(
        "fpe_queue_blocks",
        ("stage",),
        "Blocks that wait for a reader (decode), a model (edit), the next commit (commit).",
    ),
    Family(
        "fpe_worker_deaths_total", ("stage",), "Processes that died while they processed a block."
    ),
    Family("fpe_store_requests_total", ("stage",), "Requests to stores, not counting retries."),
    Family("fpe_store_retries_total", ("stage",), "Retries of requests to stores."),
    Family("fpe_store_read_bytes_total", ("stage",), "Bytes of whole files read from stores."),
    Family("fpe_store_written_bytes_total", ("stage",), "Bytes written to stores."),
)
"""All metrics. The dashboard and the documentation name these and no others."""

_OF_STAGES = {
    "rows": "fpe_stage_rows_total",
    "blocks": "fpe_blocks_total",
    "block_seconds": "fpe_block_seconds_total",
    "lost_blocks": "fpe_blocks_lost_total",
    "worker_deaths": "fpe_worker_deaths_total",
    "device_failures": "fpe_worker_deaths_total",
    "requests": "fpe_store_requests_total",
    "retries": "fpe_store_retries_total",
    "bytes_read": "fpe_store_read_bytes_total",
    "bytes_written": "fpe_store_written_bytes_total",
}
_OF_ROWS = {"unet_rows": "fpe_unet_rows_made_total", "lost_unet_rows": "fpe_unet_rows_lost_total"}
_PHASE_OF_FIGURE = {
    ("load", "seconds"): "load",
    ("decode", "seconds"): "read",
    ("edit", "encode_seconds"): "encode",
    ("edit", "invert_seconds"): "invert",
    ("edit", "sample_seconds"): "sample",
    ("edit", "decode_seconds"): "decode",
    ("judge", "seconds"): "judge",
    ("write", "seconds"): "write",
    ("commit", "seconds"): "commit",
}
"""(stage, figure) to the phase whose time the figure is."""

_Series = tuple[str, tuple[tuple[str, str], ...]]  # a family's name, and its labels


@dataclass
class RunMetrics:
    """The metrics of one run. Counts from the start of the run, exports while Ray is connected."""

    run: str
    blocks_to_do: int = 0
    """Blocks given to the stages since the poller began; those processed again count twice."""
    _counted: defaultdict[_Series, float] = field(default_factory=lambda: defaultdict(float))
    _exported: defaultdict[_Series, float] = field(default_factory=lambda: defaultdict(float))
    _levels: dict[_Series, float] = field(default_factory=dict)
    _made: dict[str, Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def values(self) -> dict[_Series, float]:
        """The value of every series so far, by name and labels."""
        with self._lock:
            return {**self._counted, **self._levels}

    def committed(self, outcomes: pa.Table) -> None:
        """These outcomes entered the ledger."""
        kinds = zip(*(outcomes[name].to_pylist() for name in ("outcome", "reason")), strict=True)
        for (outcome, reason), count in Counter(kinds).items():
            self._count("fpe_edits_total", count, outcome=outcome, reason=reason)
        self._count("fpe_unet_rows_total", float(np.nansum(outcomes["unet_rows"].to_numpy())))
        tries = outcomes["tries"].drop_null().to_pylist()
        self._count("fpe_edit_retries_total", sum(len(each) - 1 for each in tries))

    def planned(self, edits: int, left: int, actors: int) -> None:
        """Edits that are planned, edits left, and the number of actors."""
        self._set("fpe_edits_planned", edits)
        self._set("fpe_edits_left", left)
        self._set("fpe_actors", actors)

    def arrived(self, left: int, blocks_to_commit: int) -> None:
        """Outcomes arrived: edits left now, and blocks that wait for the next commit."""
        self._set("fpe_edits_left", left)
        self._set("fpe_queue_blocks", blocks_to_commit, stage="commit")

    def spent(self, figures: StageFigures) -> None:
        """What stages cost since the last call."""
        for stage, of_stage in figures.items():
            for name, value in of_stage.items():
                if name in _OF_STAGES:
                    self._count(_OF_STAGES[name], value, stage=stage)
                if name in _OF_ROWS:
                    self._count(_OF_ROWS[name], value)
                if (stage, name) in _PHASE_OF_FIGURE:
                    self._count(
                        "fpe_phase_seconds_total", value, phase=_PHASE_OF_FIGURE[stage, name]
                    )

    def queued(self, queues: StageFigures, to_read: float) -> None:
        """Blocks in progress and waiting, and workers; `to_read`: blocks not decoded yet."""
        for stage in ("decode", "edit"):
            in_progress = queues.get(stage, {}).get("in_progress", 0.0)
            waiting = queues.get(stage, {}).get("waiting", 0.0)
            if stage == "decode":
                waiting = max(0.0, to_read - in_progress)
            self._set("fpe_blocks_in_hand", in_progress, stage=stage)
            self._set("fpe_queue_blocks", waiting, stage=stage)
        self._set("fpe_actors_there", queues.get("edit", {}).get("workers", 0.0))

    def export(self) -> None:
        """Passes what changed to Ray. Without Ray it does nothing, and the next call catches up."""
        import ray

        if not ray.is_initialized():
            return
        with self._lock:
            for (name, labels), value in self._counted.items():
                new = value - self._exported[name, labels]
                if new > 0:
                    self._metric(name).inc(new, tags={**dict(labels), "run": self.run})
                    self._exported[name, labels] = value
            for (name, labels), value in self._levels.items():
                self._metric(name).set(value, tags={**dict(labels), "run": self.run})

    def _metric(self, name: str) -> Any:
        from ray.util.metrics import Counter as RayCounter
        from ray.util.metrics import Gauge

        if name not in self._made:
            family = next(each for each in FAMILIES if each.name == name)
            kind: Callable[..., Any] = RayCounter if family.is_counter else Gauge
            labels = (*family.labels, "run")
            self._made[name] = kind(name, description=family.description, tag_keys=labels)
        return self._made[name]

    def _count(self, name: str, value: float, **labels: str) -> None:
        if value > 0:
            with self._lock:
                self._counted[name, tuple(sorted(labels.items()))] += value

    def _set(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._levels[name, tuple(sorted(labels.items()))] = value


class FiguresPoller:
    """Polls the supervisor's figures; updates the metrics with the changes since the last poll."""

    def __init__(
        self,
        metrics: RunMetrics,
        poll: Callable[[], tuple[StageFigures, StageFigures] | None],
    ) -> None:
        """`poll` returns `Supervisor.state`, or None if the supervisor does not answer."""
        self._metrics = metrics
        self._poll = poll
        self._seen: Mapping[str, Mapping[str, float]] = {}
        metrics.blocks_to_do = 0

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Polls every few seconds, on a thread, for the length of the context."""
        ended = threading.Event()

        def keep_polling() -> None:
            while not ended.wait(POLL_INTERVAL_S):
                self.poll()

        self._metrics.export()
        thread = threading.Thread(target=keep_polling, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def poll(self) -> None:
        """Polls once, and exports what changed."""
        answer = self._poll()
        if answer is not None:
            self._take(*answer)
        self._metrics.export()

    def finish(self, figures: StageFigures) -> None:
        """Exports the supervisor's last figures; no block is being processed any more."""
        self._metrics.blocks_to_do = 0
        self._take(figures, {})
        self._metrics.export()

    def _take(self, figures: StageFigures, queues: StageFigures) -> None:
        self._metrics.spent(_new_since(self._seen, figures))
        self._seen = figures
        through = figures.get("decode", {}).get("blocks", 0.0)
        self._metrics.queued(queues, to_read=self._metrics.blocks_to_do - through)


def _new_since(before: StageFigures, now: StageFigures) -> dict[str, dict[str, float]]:
    return {
        stage: {
            name: value - before.get(stage, {}).get(name, 0.0) for name, value in values.items()
        }
        for stage, values in now.items()
    }
